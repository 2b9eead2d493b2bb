"""A slot is one session of the embedded target: its place in the KV cache and unsent replies.

Replies wait here until the session's generator takes them. The answer bounds their number:
every reply but a Reject commits a token, and each Reject answers a message of the edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from speculation.logits import Adjust
from speculation.messages import Down, Open, TokenId, TokenLogprob
from speculation.verify_session import Pass, VerifyingSession
from verifier.llama_target.pass_part import PassPart
from verifier.llama_target.pass_runner import PassRunner
from verifier.target import Reply, TargetFailed


class Slot:
    """Keeps one session. session: the machine's record of it, which is only read here. adjust:
    called only in the engine's thread. owner: the owner of its tokens in the KV cache."""

    def __init__(
        self,
        name: str,
        session: VerifyingSession,
        adjust: Adjust | None = None,
        owner: str | None = None,
    ) -> None:
        self.name = name
        self.owner = owner
        self.request: Open = session.request
        self.sequence: int
        """The session has this sequence of the KV cache once `assign` was called."""

        self.has_sequence = False

        self.opening = (*self.request.prompt, *self.request.committed)
        """The session begins with these tokens; all but the last are prefilled."""

        self.prefilled = 0
        """The KV cache holds this many tokens of `opening`."""

        self.cached_tokens = 0
        """The sequence held this many tokens of `opening` when the session took it."""

        self.waits_since: float | None = None
        """The session's pass has waited for drafts since this time; None while it does not."""

        self._session = session
        self._adjust = adjust
        self._waiting: asyncio.Queue[Reply | TargetFailed] = asyncio.Queue()
        self._failed = False

    @property
    def finished(self) -> bool:
        return self._session.finished is not None

    @property
    def held(self) -> tuple[TokenId, ...]:
        """Return the tokens surely in its KV: all but the last, which begins a pass."""
        if self._failed or not self.has_sequence:
            return ()
        if self.unread:
            return self.opening[: self.prefilled]
        return (*self.request.prompt, *self._session.committed)[:-1]

    @property
    def unread(self) -> int:
        """Return the number of tokens to prefill: all but the last, which begins a pass."""
        reads = self.has_sequence and not self._failed
        return len(self.opening) - 1 - self.prefilled if reads else 0

    @property
    def ready(self) -> bool:
        """True if the KV cache holds all that a pass needs."""
        return self.has_sequence and not self._failed and not self.unread

    def assign(self, sequence: int, cached_tokens: int) -> None:
        """Give the session a sequence whose KV holds the first `cached_tokens` tokens of
        `opening`."""
        self.sequence, self.has_sequence = sequence, True
        self.cached_tokens = self.prefilled = cached_tokens

    def decode(self, engine: PassRunner, count: int) -> Sequence[TokenLogprob]:
        """Decode the next `count` unread tokens, in the engine's thread. Return what a subclass
        wants of them."""
        start = self.prefilled
        engine.prefill(self.sequence, start, self.opening[start : start + count])
        return ()

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        """Note that so many tokens more were decoded. logprobs: what `decode` has returned."""
        self.prefilled += count

    def part(self, judged: Pass) -> PassPart:
        """Return the session's part of a pass that has begun."""
        last = (*self.request.prompt[-1:], *self._session.committed[-1:])[-1]
        held = len(self.request.prompt) + judged.start - 1
        committed = () if self._adjust is None else tuple(self._session.committed)
        return PassPart(
            self.sequence, held, last, judged, self.request, self._adjust, committed
        )

    def send(self, down: Sequence[Down]) -> None:
        """Queue the replies among these messages for the session's generator."""
        for message in down:
            if isinstance(message, Reply):
                self._waiting.put_nowait(message)

    def fail(self, failure: TargetFailed) -> None:
        """End the session: the queued replies are still sent, then the failure is raised."""
        self._failed = True
        self._waiting.put_nowait(failure)

    async def next(self) -> Reply:
        """Return the next message, once there is one. Raises TargetFailed."""
        if isinstance(message := await self._waiting.get(), TargetFailed):
            raise message
        return message


class PromptLogprobs(Slot):
    """Reads a prompt for its log-probabilities, and generates nothing. most: the number of the
    likeliest tokens that are reported in place of each."""

    def __init__(
        self, name: str, session: VerifyingSession, owner: str | None, most: int
    ) -> None:
        super().__init__(name, session, owner=owner)
        self.most = most
        self._found: list[TokenLogprob] = []
        self._over = asyncio.get_running_loop().create_future()
        if len(self.opening) == 1:
            self._over.set_result(None)

    @property
    def ready(self) -> bool:
        return False

    def assign(self, sequence: int, cached_tokens: int) -> None:
        """Take the sequence as an empty one, because a cache holds no logits."""
        super().assign(sequence, 0)

    def decode(self, engine: PassRunner, count: int) -> Sequence[TokenLogprob]:
        """Decode the next tokens, and return the log-probability of the token after each."""
        start, end = self.prefilled, self.prefilled + count
        tokens, after = self.opening[start:end], self.opening[end]
        return engine.score(self.sequence, start, tokens, after, self.most)

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        super().decoded(count, logprobs)
        self._found += logprobs
        if not self.unread and not self._over.done():
            self._over.set_result(None)

    def fail(self, failure: TargetFailed) -> None:
        super().fail(failure)
        if not self._over.done():
            self._over.set_exception(failure)

    async def scores(self) -> Sequence[TokenLogprob]:
        """Return all of them, once the prompt was read. Raises TargetFailed."""
        await self._over
        return self._found
