"""How many draft tokens a pass should judge: a row is worth what it is likely to earn.

A pass over `rows` rows takes T(rows) and commits, from a session whose drafts stand with
probability a each, 1 + a + ... + a^K tokens for K + 1 rows. On a GPU T hardly grows and all
pending drafts are worth judging; on one CPU core T is nearly proportional and few are. The
verifier learns T and a as it goes, and picks the rows that commit most tokens per second. So a
session with useless drafts costs the others nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from statistics import fmean, median
from typing import Final

from speculation.smoothing import smoothed

ENOUGH: Final = 3
"""Passes of a size, so that none of them can mislead alone."""

DEARER: Final = 1.1
"""Than a pass with more rows: by so much a size differs, and does not seem to."""

LATEST: Final = 15
"""Passes of a size that count: their mean, as slowness is one. With their median, on a host
that pauses now and then both chased each other: slowness rose by a third in 700 passes, and
sizes not seen meanwhile seemed so much dearer."""

FORGOTTEN_AFTER: Final = 128
"""Passes of any size, after which those seen less than ENOUGH times are unknown again: one slow
pass must not rule a size out for ever."""

MOST_SLOWER: Final = 2.0
"""Than usual: a pass that took longer counts as that, for a pause is not a slow host."""

REACTS: Final = 1 / 2
"""The weight of the latest pass in how slow the host is: with less, the size seen meanwhile
would take in a part of it, and the others not."""

FADES: Final = 1 / 128
"""Of the slowness with each pass: a host that stays slow is so by nature."""

LEAST_GAIN: Final = 1.1
"""No draft is judged for less. A run of right drafts makes acceptance seem higher than it is:
where a row costs nearly a pass, drafts of which .92 to .95 are right made a session up to 18 %
slower in the simulator, now 2 %. Where rows are cheap nothing changes."""


class _Size:
    """The latest passes of one size, in seconds of a host as fast as usual."""

    def __init__(self) -> None:
        self.latest_s: deque[float] = deque(maxlen=LATEST)
        self.usual_s = 0.0

    @property
    def sure(self) -> bool:
        return len(self.latest_s) >= ENOUGH

    def saw(self, seconds: float) -> None:
        self.latest_s.append(seconds)
        most_s = MOST_SLOWER * median(self.latest_s)
        self.usual_s = fmean(min(latest_s, most_s) for latest_s in self.latest_s)


@dataclass(frozen=True, slots=True)
class _Curve:
    """What passes usually take; one entry a size seen, by rows."""

    rows: list[int]
    seen_s: list[float]
    """Of a pass of this size."""

    least_s: list[float]
    """Of any pass of this size or larger."""

    def of(self, rows: int) -> float:
        at = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        if self.rows[at] <= rows:
            return self.seen_s[at]
        low, low_s = (self.rows[at - 1], self.seen_s[at - 1]) if at else (0, 0.0)
        way = (rows - low) / (self.rows[at] - low)
        return min(low_s + way * (self.seen_s[at] - low_s), self.least_s[at])


def _curve(sizes: Mapping[int, _Size]) -> _Curve:
    rows = sorted(sizes)
    usual_s = [sizes[n].usual_s for n in rows]
    least_s = list(accumulate(reversed(usual_s), min))[::-1]
    seen_s = [
        own_s if sizes[n].sure and own_s > DEARER * bound_s else bound_s
        for n, own_s, bound_s in zip(rows, usual_s, least_s, strict=True)
    ]
    return _Curve(rows, seen_s, least_s)


class PassLatency:
    """T(rows) in seconds, learned online. What is not known counts as cheap, and so gets tried.

    What shares a host slows it down for a while, whatever the rows. So T is the usual time of a
    size times a slowness that passes of any size tell: while only one size is seen, the others
    keep their proportion to it.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._slowness = 1.0
        self._passes = 0
        self._curve: _Curve | None = None  # of the sizes as they are now

    def saw(self, rows: int, seconds: float) -> None:
        """Take in one pass; seconds > 0."""
        self._curve = None
        if (size := self._sizes.get(rows)) is None:
            size = self._sizes[rows] = _Size()
        else:
            latest = min(seconds / size.usual_s, MOST_SLOWER * self._slowness)
            self._slowness = smoothed(self._slowness, latest, REACTS) ** (1.0 - FADES)
        size.saw(seconds / self._slowness)
        self._passes += 1
        if self._passes % FORGOTTEN_AFTER == 0:
            sure = {n: seen for n, seen in self._sizes.items() if seen.sure}
            self._sizes = sure or self._sizes

    def of(self, rows: int) -> float:
        """Return the expected time of a pass; 0 before the first.

        A size not seen lies on the line between its neighbours, the first of which is nothing
        at all; one larger than any seen is as cheap as the largest. T hardly ever falls with
        more rows, so the cheapest pass seen at `rows` or more bounds it. But on some CPUs one
        row takes a third longer than four: what is clearly so counts.
        """
        if not self._sizes:
            return 0.0
        if self._curve is None:
            self._curve = _curve(self._sizes)
        return self._curve.of(rows) * self._slowness


def timed(pass_s: Callable[[int], float], max_verify: int) -> PassLatency:
    """Return what is known before the first session: passes without drafts, with some, and with
    all that may be, as timed by pass_s(rows), in seconds."""
    times = PassLatency()
    for _ in range(ENOUGH):
        for rows in sorted({1, 1 + max_verify // 4, 1 + max_verify}):
            times.saw(rows, pass_s(rows))
    return times


def expected_tokens(acceptance: float, drafts: int) -> float:
    """Return what a pass over so many drafts commits: 1 + a + ... + a^K."""
    return sum(acceptance**k for k in range(drafts + 1))


def best_rate(
    acceptance: float, times: PassLatency, most: int, *, restart_s: float = 0.0
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
    pending: Sequence[int],
    acceptance: Sequence[float],
    times: PassLatency,
    *,
    most: int,
    whole: bool = False,
) -> list[int]:
    """Return how many drafts of each session to judge in the next pass.

    pending, acceptance: one entry a session. most: rows the pass may have in all; each session
    has one row without drafts. The next row always goes to the session whose next draft is
    likeliest to be reached and to stand; the number of rows is the one with the best expected
    tokens per second, if that is LEAST_GAIN of what no drafts at all would bring. whole: as
    many as there may be, for fewest passes.
    """
    gains = sorted(
        ((a**k, i) for i, (n, a) in enumerate(zip(pending, acceptance, strict=True))
         for k in range(1, n + 1)),
        reverse=True,
    )[: max(0, most - len(pending))]  # fmt: skip
    tokens = accumulate((gain for gain, _ in gains), initial=float(len(pending)))
    rates = [_rate(n, times.of(len(pending) + rows)) for rows, n in enumerate(tokens)]
    best = max(range(len(rates)), key=lambda rows: (rates[rows], rows))
    if whole:
        best = len(gains)
    elif rates[best] < LEAST_GAIN * rates[0]:
        best = 0
    taken = [i for _, i in gains[:best]]
    return [taken.count(i) for i in range(len(pending))]


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds > 0.0 else inf
