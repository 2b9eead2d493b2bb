"""A slot is one session of the embedded target: its place in the KV cache, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from speculation.judges import JUDGES
from speculation.logits import Adjust
from speculation.messages import CachedPromptTokens, Down, Finish, Open, TokenLogprob
from speculation.model_facts import TokenId
from speculation.verify_session import Pass, VerifyingSession
from speculation.wire import Framed
from verifier.llama_target.mtp_head import Pick
from verifier.llama_target.pass_part import PassPart
from verifier.llama_target.pass_runner import PassRunner
from verifier.target import Deliver, Reply

Reading = Callable[[], Sequence[TokenLogprob] | None]
"""Decodes a piece of a prompt. It has all that it needs, because a slot belongs to the event
loop, and other threads never see it."""


class Slot:
    """Keeps one session. session: the machine's record of it, which is only read here. deliver:
    gets its replies. adjust: called only in the engine's thread. owner: the owner of its tokens
    in the KV cache."""

    def __init__(
        self,
        name: str,
        session: VerifyingSession,
        deliver: Deliver = lambda _: None,
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

        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """It is done once nothing more will be delivered, or raises why."""

        self.proposed: Sequence[TokenId] = ()
        """The head has proposed these tokens after the text."""

        self._session = session
        self._deliver = deliver
        self._adjust = adjust
        self._has_replied = False
        self._failed = False

    @property
    def finished(self) -> bool:
        return self._session.finished is not None

    @property
    def text(self) -> tuple[TokenId, ...]:
        """Return its tokens, of prompt and answer; none after a failure."""
        return () if self._failed else (*self.request.prompt, *self._session.committed)

    @property
    def held(self) -> tuple[TokenId, ...]:
        """Return the tokens surely in its KV: all but the last, which begins a pass."""
        if not self.has_sequence:
            return ()
        if self.unread:
            return self.opening[: self.prefilled]
        return self.text[:-1]

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

    def reading(self, engine: PassRunner, count: int) -> Reading:
        """Return the work of decoding the next `count` unread tokens, for the engine's thread.
        It returns what a subclass wants of them."""
        start = self.prefilled
        end = start + count
        tokens, after = self.opening[start:end], self.opening[end]
        return partial(engine.prefill, self.sequence, start, tokens, after)

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        """Note that so many tokens more were decoded. logprobs: what the work has returned."""
        self.prefilled += count

    def part(self, judged: Pass) -> PassPart:
        """Return the session's part of a pass that has begun."""
        last = (*self.request.prompt[-1:], *self._session.committed[-1:])[-1]
        held = len(self.request.prompt) + judged.start - 1
        if judged.head:
            judged = replace(judged, draft=tuple(self.proposed[: judged.head]))
        committed = () if self._adjust is None else tuple(self._session.committed)
        return PassPart(
            self.sequence, held, last, judged, self.request, self._adjust, committed
        )

    def picking(self) -> Pick:
        """Return what draws the head's tokens, in the engine's thread, by the noise with which
        the target draws its own."""
        sampler = JUDGES[self.request.judge].edge(self.request, iter(())).sampler
        prompt_tokens = len(self.request.prompt)
        return lambda logits, position: sampler(logits, position - prompt_tokens).token

    def send(self, down: Sequence[Down]) -> None:
        """Deliver the replies among these messages. If that fails, this session alone is
        lost."""
        try:
            for message in down:
                if isinstance(message, Reply):
                    self._reply(message)
        except Exception as bug:
            self.fail(bug)

    def _reply(self, message: Reply) -> None:
        if not self._has_replied and self.cached_tokens:
            self._deliver(Framed(CachedPromptTokens(self.cached_tokens)))
        self._has_replied = True
        self._deliver(Framed(message))
        if isinstance(message, Finish):
            self.end()

    def end(self) -> None:
        """Note that nothing more will be delivered."""
        if not self.over.done():
            self.over.set_result(None)

    def fail(self, failure: Exception) -> None:
        """End the session: `over` raises the failure."""
        self._failed = True
        if not self.over.done():
            self.over.set_exception(failure)


class PromptLogprobs(Slot):
    """Reads a prompt for its log-probabilities, and generates nothing. most: the number of the
    likeliest tokens that are reported in place of each."""

    def __init__(
        self, name: str, session: VerifyingSession, owner: str | None, most: int
    ) -> None:
        super().__init__(name, session, owner=owner)
        self.most = most
        self._found: list[TokenLogprob] = []
        if len(self.opening) == 1:
            self.end()

    @property
    def ready(self) -> bool:
        return False

    def assign(self, sequence: int, cached_tokens: int) -> None:
        """Take the sequence as an empty one, because a cache holds no logits."""
        super().assign(sequence, 0)

    def reading(self, engine: PassRunner, count: int) -> Reading:
        """Do the same for work that returns the log-probability of the token after each."""
        start, end = self.prefilled, self.prefilled + count
        tokens, after = self.opening[start:end], self.opening[end]
        return partial(engine.score, self.sequence, start, tokens, after, self.most)

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        super().decoded(count, logprobs)
        self._found += logprobs
        if not self.unread:
            self.end()

    async def scores(self) -> Sequence[TokenLogprob]:
        """Return all of them, once the prompt was read. Raises TargetFailed."""
        await self.over
        return self._found
