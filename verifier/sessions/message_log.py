"""What a session has said, so that any reader can begin anywhere.

The log is the only buffer between the target and a reader: a slow reader reads later, a new one
begins where it likes. It is bounded by the answer's length: of the rejections only the latest is
kept, and none once its position is committed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from speculation.protocol.messages import Commit, Fault, Finish, Reject

Heard = Commit | Reject | Finish | Fault


@dataclass(slots=True)
class Cursor:
    """How far a reader has come."""

    position: int
    """Output tokens read."""

    rejections: int = 0
    """Refusals said before what is read next."""

    ended: bool = False


class Log:
    def __init__(self) -> None:
        self.ending: Finish | Fault | None = None
        self._commits: list[Commit] = []
        self._starts: list[int] = []
        self._refuse: Reject | None = None
        self._refusals = 0

    @property
    def tokens(self) -> int:
        """Output tokens said."""
        if not self._commits:
            return 0
        return self._starts[-1] + len(self._commits[-1].tokens)

    @property
    def rejected(self) -> bool:
        """A replacement is awaited."""
        return self._refuse is not None

    def add(self, message: Commit | Reject | Finish | Fault) -> None:
        """Append what was said. Commits come in order, without gaps."""
        match message:
            case Commit():
                self._commits.append(message)
                self._starts.append(message.start)
                self._refuse = None
            case Reject():
                self._refuse = message
                self._refusals += 1
            case Finish() | Fault():
                self.ending = message

    def read(self, cursor: Cursor) -> list[Heard]:
        """Return what follows the cursor, and move it there."""
        news: list[Heard] = list(self._from(cursor.position))
        cursor.position = max(cursor.position, self.tokens)
        if self._refuse and cursor.rejections < self._refusals:
            news.append(self._refuse)
        cursor.rejections = self._refusals
        if self.ending and not cursor.ended:
            news.append(self.ending)
            cursor.ended = True
        return news

    def _from(self, position: int) -> list[Commit]:
        if position >= self.tokens:
            return []
        first = bisect_right(self._starts, position) - 1
        cut = _after(self._commits[first], position)
        return [cut, *self._commits[first + 1 :]]


def _after(commit: Commit, position: int) -> Commit:
    """Return the part of a Commit from `position` on."""
    passed = position - commit.start
    return replace(
        commit,
        start=position,
        tokens=commit.tokens[passed:],
        accepted=max(0, commit.accepted - passed),
        logprobs=commit.logprobs and commit.logprobs[passed:],
    )
