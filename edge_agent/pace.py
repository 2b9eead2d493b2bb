"""One session's times, and the window they ask for. The rules are speculation.drafting.policy's."""

from __future__ import annotations

from collections.abc import Callable

from speculation.drafting.policy import (
    DraftSettings,
    may_draft,
    should_flush,
    window,
)
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Times
from speculation.protocol.messages import Limits
from speculation.smoothing import smoothed


class Pace:
    """Measures; all times in seconds. rtt_s: the link's round trip, now."""

    def __init__(
        self, pacing: DraftSettings, limits: Limits, rtt_s: Callable[[], float]
    ) -> None:
        self.pacing = pacing
        self.limits = limits
        self._rtt_s = rtt_s
        self._pass_s = 0.0
        self._draft_s = 0.0

    @property
    def times(self) -> Times:
        return Times(self._rtt_s(), self._pass_s, self._draft_s)

    @property
    def window(self) -> int:
        """Unverified tokens allowed."""
        return window(self.limits, self.times)

    def may_draft(self, session: DraftingSession) -> bool:
        return may_draft(self.pacing, session, self.times, self.window)

    def may_look_up(self, session: DraftingSession) -> bool:
        """A guess that takes no time is worth keeping, however far ahead."""
        return may_draft(self.pacing, session, self.times, self.limits.max_ahead)

    def should_flush(self, session: DraftingSession, *, drafting: bool, separate: bool) -> bool:
        return should_flush(self.pacing, session, drafting=drafting, separate=separate)

    def passed(self, pass_s: float) -> None:
        """A pass was reported. 0 says nothing: a replacement takes none."""
        if pass_s > 0.0:
            self._pass_s = smoothed(self._pass_s or None, pass_s)

    def drafted(self, took_s: float) -> None:
        """The draft model made a step that read one token: this is a draft's time."""
        self._draft_s = smoothed(self._draft_s or None, took_s)
