"""What speculation did for one job, counted from its Commits and set right by its Finish."""

from __future__ import annotations

from gateway.ports import Statistics
from speculation.protocol.messages import Commit, Totals


class Tally:
    """A Commit does not say how many drafts its pass judged: until the Finish, only passes with
    an accepted draft count as such, and only accepted drafts are known to be judged."""

    def __init__(self) -> None:
        self._passes = 0
        self._accepted = 0
        self._per_position: list[int] = []

    def take_in(self, commit: Commit) -> None:
        self._passes += 1
        self._accepted += commit.accepted
        missing = commit.accepted - len(self._per_position)
        self._per_position.extend([0] * missing)
        for i in range(commit.accepted):
            self._per_position[i] += 1

    def so_far(self) -> Statistics:
        drafts = self._per_position[0] if self._per_position else 0
        return Statistics(
            self._passes, drafts, self._accepted, self._accepted, tuple(self._per_position)
        )

    def finished(self, totals: Totals) -> Statistics:
        return Statistics(
            totals.passes,
            totals.passes - totals.filled,
            totals.judged,
            totals.accepted,
            tuple(self._per_position),
        )
