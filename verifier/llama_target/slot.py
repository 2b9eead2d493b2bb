"""One session in the embedded target: its part of the KV cache, and what it has to send.

Messages wait here until the session's generator takes them. They are bounded by the answer:
every message but a Reject commits a token, and a Reject is sent only when it is asked for.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
        """It has this sequence of the KV cache, from before the scheduler has the slot on."""

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
        self._waiting: deque[Reply] = deque()
        self._failure: TargetFailed | None = None
        self._changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        return self._session.finished is not None

    @property
    def held(self) -> tuple[TokenId, ...]:
        """What its sequence holds for sure: all but the last token, which opens a pass."""
        if self._failure:
            return ()
        if self.unread:
            return self.opening[: self.prefilled]
        return (*self.request.prompt, *self._session.committed)[:-1]

    @property
    def unread(self) -> int:
        """Tokens to prefill: all but the last, which opens the first pass."""
        return 0 if self._failure else len(self.opening) - 1 - self.prefilled

    @property
    def ready(self) -> bool:
        """Whether a pass could start as far as the KV cache is concerned."""
        return not (self.unread or self._failure)

    def part(self, judged: Pass) -> Part:
        """Return what the slot brings to a pass that has begun."""
        last = (*self.request.prompt[-1:], *self._session.committed[-1:])[-1]
        held = len(self.request.prompt) + judged.start - 1
        committed = () if self._adjust is None else tuple(self._session.committed)
        return Part(self.sequence, held, last, judged, self.request, self._adjust, committed)

    def send(self, down: Sequence[Down]) -> None:
        """Let the session's generator have these messages."""
        self._waiting.extend(message for message in down if isinstance(message, Reply))
        self._changed.set()

    def fail(self, failure: TargetFailed) -> None:
        """End the session: what waits is still sent, then the failure is raised."""
        self._failure = failure
        self._changed.set()

    async def next(self) -> Reply:
        """Return the next message, once there is one. Raises TargetFailed."""
        while not self._waiting:
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()
