"""Estimates how long the target alone takes for the tokens of an answer."""

from __future__ import annotations

from collections.abc import Callable

from speculation.learning import running_mean
from speculation.messages import Commit


class Pace:
    """Estimates how long the target alone takes for the tokens of an answer, after the first
    Commit, whose pass reads the prompt.

    Alone, the target makes a token in each pass, and its passes have one row and no draft model
    beside them. The shortest ones of the answer stand for them. If all had more rows, the
    estimate is too high, by what these cost. clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens = 0
        self._pass_s: dict[int, float] = {}  # mean time of a pass, by the draft tokens accepted

    def committed(self, commit: Commit, slowed: float = 1.0) -> None:
        """Take in a Commit when it has come. slowed: see DraftMachine."""
        self._last_s = self._clock()
        if self._first_s is None:
            self._first_s = self._last_s
            return
        self._tokens += len(commit.tokens)
        if commit.pass_s > 0.0:
            before = self._pass_s.get(commit.drafts)
            self._pass_s[commit.drafts] = running_mean(before, commit.pass_s / slowed)

    @property
    def taken_s(self) -> float:
        """The time from the first Commit to the last; 0 if no pass was timed."""
        return self._last_s - (self._first_s or 0.0) if self._pass_s else 0.0

    @property
    def alone_s(self) -> float:
        """The time that the target alone takes for as many tokens; 0 if no pass was timed."""
        return self._tokens * min(self._pass_s.values(), default=0.0)
