"""How many draft tokens a pass should judge: a row is worth what it is likely to earn.

A pass over `rows` rows takes T(rows) and commits, from a session whose drafts stand with
probability a each, 1 + a + ... + a^K tokens for K + 1 rows. On a GPU T hardly grows and all
pending drafts are worth judging; on one CPU core T is nearly proportional and few are. The
verifier learns T and a as it goes, and picks the rows that commit most tokens per second. So a
session with useless drafts costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from speculation.smoothing import smoothed

ENOUGH: Final = 3
"""Passes of a size, so that none of them can mislead alone."""

DEARER: Final = 1.1
"""Than a pass with more rows: by so much a size differs, and does not seem to."""

_FORGOTTEN: Final = 1 / 512  # of what is known about a size, with each pass of another


@dataclass(slots=True)
class _Size:
    """Passes of one size: how many, their running mean, and the same fading towards 0."""

    passes: int
    mean_s: float
    faded_s: float

    def saw(self, seconds: float) -> None:
        self.passes += 1
        self.mean_s = smoothed(self.mean_s, seconds)
        self.faded_s = smoothed(self.faded_s, seconds)


class PassTimes:
    """T(rows) in seconds, learned online. A size not seen counts as no dearer than seen."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._known: dict[int, float] = {}  # what `of` has answered since the last pass

    def saw(self, rows: int, seconds: float) -> None:
        """Take in one pass.

        What is known of other sizes fades towards "cheap": so a size is tried again at times,
        and one slow pass does not rule it out for ever.
        """
        self._known.clear()
        for other, size in self._sizes.items():
            if other != rows:
                size.faded_s *= 1.0 - _FORGOTTEN
        self._sizes.setdefault(rows, _Size(0, seconds, seconds)).saw(seconds)

    def of(self, rows: int) -> float:
        """Return the expected time of a pass; 0 before the first.

        T hardly ever falls with more rows, so the cheapest pass seen at `rows` or more bounds
        it; one larger than any pass seen is assumed as cheap as the largest, and so gets tried.
        But on some CPUs one row takes a third longer than four: what is clearly so counts.
        """
        if rows not in self._known:
            self._known[rows] = self._expected_s(rows)
        return self._known[rows]

    def _expected_s(self, rows: int) -> float:
        if not self._sizes:
            return 0.0
        larger = [size for seen, size in self._sizes.items() if seen >= rows]
        if not larger:
            return self._sizes[max(self._sizes)].faded_s
        size = self._sizes.get(rows)
        if (
            size
            and size.passes >= ENOUGH
            and size.mean_s > DEARER * min(s.mean_s for s in larger)
        ):
            return size.faded_s
        return min(s.faded_s for s in larger)


def expected_tokens(acceptance: float, drafts: int) -> float:
    """Return what a pass over so many drafts commits: 1 + a + ... + a^K."""
    return sum(acceptance**k for k in range(drafts + 1))


def best_rate(
    acceptance: float, times: PassTimes, most: int, *, restart_s: float = 0.0
) -> float:
    """Return the tokens per second of a session that has its drafts in time; inf if T is 0.

    most: drafts that a pass may judge. restart_s: how long a broken chain takes to begin again;
    meanwhile the target fills in.
    """
    alone_s = times.of(1)
    if alone_s <= 0.0:
        return inf
    tokens, best = 0.0, 0.0
    for drafts in range(most + 1):
        tokens += acceptance**drafts
        broken_s = (1.0 - acceptance**drafts) * restart_s
        rate = (tokens + broken_s / alone_s) / (times.of(drafts + 1) + broken_s)
        best = max(best, rate)
    return best


def share(
    pending: Sequence[int], acceptance: Sequence[float], times: PassTimes, *, most: int
) -> list[int]:
    """Return how many drafts of each session to judge in the next pass.

    pending, acceptance: one entry a session. most: rows the pass may have in all; each session
    has one row without drafts. The next row always goes to the session whose next draft is
    likeliest to be reached and to stand; the number of rows is the one with the best expected
    tokens per second.
    """
    gains = sorted(
        ((a**k, i) for i, (n, a) in enumerate(zip(pending, acceptance, strict=True))
         for k in range(1, n + 1)),
        reverse=True,
    )[: max(0, most - len(pending))]  # fmt: skip
    tokens, best, fastest = float(len(pending)), 0, 0.0
    for rows in range(len(gains) + 1):
        seconds = times.of(len(pending) + rows)
        tokens += gains[rows - 1][0] if rows else 0.0
        rate = tokens / seconds if seconds > 0.0 else inf
        if rate >= fastest:
            best, fastest = rows, rate
    taken = [i for _, i in gains[:best]]
    return [taken.count(i) for i in range(len(pending))]
