"""One session in the embedded target: its part of the KV cache, and what it has to send.

Messages wait here until the session's generator takes them. They are bounded by the answer:
every message but a Reject commits a token, and a Reject is sent only when it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from picospec.speculation.protocol.messages import Down, Open, TokenId
from picospec.speculation.sampling.adjustments import Adjust
from picospec.speculation.verifying.session import Pass, VerifyingSession
from picospec.verifier.llama_target.judging import Part
from picospec.verifier.target import Reply, TargetFailed


class Slot:
    """name: the session's. session: the machine's record of it, which is only read here.
    adjust: called in the engine's thread alone. owner: of what the KV cache holds of it."""

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
        """It has this sequence of the KV cache, once it is placed."""

        self.placed = False

        self.opening = (*self.request.prompt, *self.request.committed)
        """The session begins with this text; all but its last token is prefilled."""

        self.prefilled = 0
        """So many tokens of it are in the KV cache."""

        self.reused = 0
        """So many were there when it took its sequence."""

        self.held_since: float | None = None
        """Its pass has been held since then; None while it is not."""

        self._session = session
        self._adjust = adjust
        self._waiting: asyncio.Queue[Reply | TargetFailed] = asyncio.Queue()
        self._failed = False

    @property
    def finished(self) -> bool:
        return self._session.finished is not None

    @property
    def held(self) -> tuple[TokenId, ...]:
        """What its sequence holds for sure: all but the last token, which opens a pass."""
        if self._failed or not self.placed:
            return ()
        if self.unread:
            return self.opening[: self.prefilled]
        return (*self.request.prompt, *self._session.committed)[:-1]

    @property
    def unread(self) -> int:
        """Tokens to prefill now: all but the last, which opens the first pass."""
        reads = self.placed and not self._failed
        return len(self.opening) - 1 - self.prefilled if reads else 0

    @property
    def ready(self) -> bool:
        """Whether a pass could start as far as the KV cache is concerned."""
        return self.placed and not self._failed and not self.unread

    def place(self, sequence: int, reused: int) -> None:
        """Let the session take part, with a sequence that holds so much of its opening."""
        self.sequence, self.reused, self.prefilled, self.placed = sequence, reused, reused, True

    def part(self, judged: Pass) -> Part:
        """Return what the slot brings to a pass that has begun."""
        last = (*self.request.prompt[-1:], *self._session.committed[-1:])[-1]
        held = len(self.request.prompt) + judged.start - 1
        committed = () if self._adjust is None else tuple(self._session.committed)
        return Part(self.sequence, held, last, judged, self.request, self._adjust, committed)

    def send(self, down: Sequence[Down]) -> None:
        """Let the session's generator have these messages."""
        for message in down:
            if isinstance(message, Reply):
                self._waiting.put_nowait(message)

    def fail(self, failure: TargetFailed) -> None:
        """End the session: what waits is still sent, then the failure is raised."""
        self._failed = True
        self._waiting.put_nowait(failure)

    async def next(self) -> Reply:
        """Return the next message, once there is one. Raises TargetFailed."""
        if isinstance(message := await self._waiting.get(), TargetFailed):
            raise message
        return message
