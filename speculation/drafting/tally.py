"""Counts an answer's passes and draft tokens where some of its sessions were lost.

A verifier counts for itself, and says so with its Finish. Of a session that has none, the
Commits are all there is to count: each shows one pass, and the draft tokens that it accepted.
"""

from __future__ import annotations

from picospec.speculation.protocol.messages import Commit, Finish, Totals


class Tally:
    def __init__(self) -> None:
        self.totals = Totals()
        """The Commits of all sessions so far add up to this."""

        self._before = Totals()  # the part of it that lost sessions have counted

    def add(self, commit: Commit) -> None:
        if commit.tokens:
            accepted = commit.drafts
            filled = int(accepted == 0)
            self.totals = self.totals.plus(Totals(1, accepted, accepted, filled, commit.own))

    def lost(self) -> None:
        """Note that the session is lost: what follows is counted by another verifier."""
        self._before = self.totals

    def finished(self, finish: Finish) -> Finish:
        """Return the last session's Finish with the totals of all."""
        return Finish(finish.reason, self._before.plus(finish.totals))
