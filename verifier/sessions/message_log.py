"""What was sent to a session's edge, so that any reader can begin at any position.

The log is the only buffer between the target and a reader: a slow reader reads later, a new one
begins where it likes. It is bounded by the answer's length: of the Rejects only the latest is
kept, and none once its position is committed. Messages keep their frames, so that every reader
gets the same bytes; only a Commit that a reader has in part is encoded anew.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from picospec.speculation.protocol.messages import Commit, Fault, Finish, Reject
from picospec.speculation.protocol.wire import Framed

Entry = Framed[Commit | Reject | Finish | Fault]


@dataclass(slots=True)
class Cursor:
    """How far a reader has come."""

    position: int
    """Output tokens read."""

    rejects: int = 0
    """Rejects logged before what is read next."""

    ended: bool = False


class Log:
    """start: the position of the first token that the session commits."""

    def __init__(self, start: int = 0) -> None:
        self.ending: Finish | Fault | None = None
        self.start = start
        self.tokens = start
        """The position after the last output token logged."""

        self._commits: list[Framed[Commit]] = []
        self._starts: list[int] = []
        self._reject: Entry | None = None
        self._rejects = 0
        self._last: Entry | None = None

    def add(self, entry: Entry) -> None:
        """Append a message. Commits come in order, without gaps."""
        match entry.message:
            case Commit() as commit:
                self._commits.append(Framed(commit, entry.frame))
                self._starts.append(commit.start)
                self.tokens = commit.start + len(commit.tokens)
                self._reject = None
            case Reject():
                self._reject = entry
                self._rejects += 1
            case Finish() | Fault() as ending:
                self.ending, self._last = ending, entry

    def read(self, cursor: Cursor) -> list[Entry]:
        """Return what follows the cursor, which is at `start` or later, and move it there."""
        entries: list[Entry] = list(self._from(cursor.position))
        cursor.position = max(cursor.position, self.tokens)
        if self._reject and cursor.rejects < self._rejects:
            entries.append(self._reject)
        cursor.rejects = self._rejects
        if self._last and not cursor.ended:
            entries.append(self._last)
            cursor.ended = True
        return entries

    def _from(self, position: int) -> list[Framed[Commit]]:
        if position >= self.tokens:
            return []
        first = bisect_right(self._starts, position) - 1
        commits = self._commits[first:]
        if known := position - self._starts[first]:
            commits[0] = Framed(commits[0].message.after(known))
        return commits
