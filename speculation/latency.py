"""Learns how long a target pass takes, by the number of rows it has.

    rows            draft tokens judged in a pass, plus one row for each session in it
    usual latency   mean latency of recent passes with that many rows, on an undisturbed host
    slowdown        current latency divided by the usual one; other work on the host raises it

The estimate is the usual latency times the slowdown. The two are kept apart because other work
slows passes of every size alike: while passes of one size only are observed, the ratios to the
others stay as they were. Only the product is observed, so both factors are means, and the
slowdown decays to 1.

Example: three passes of 1 row took 0.20 s, three of 9 rows 0.24 s. Then `of(5)` is 0.22 s, on
the line between both, and `of(17)` is 0.24 s: more rows than were observed count as no dearer
until they are tried. They are tried with care: a pass has at most twice the rows of the largest
one that was *cheap*, which means that it took no longer a row than one of half as many rows. So
where rows are dear from some number on, one pass finds it out.

Passes with draft tokens have sizes of their own: an engine may have a faster way for a pass in
which each request has one row, such as vLLM's FULL graphs. One draft token then makes the pass
longer for all requests, by more than its row. Where passes with draft tokens were not observed,
those without stand in for them; the other way round, they would hide the faster way for ever.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from statistics import fmean, median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speculation.learning import running_mean

MIN_SAMPLES: Final = 3
"""A size's latency is trusted after this many passes: one slow pass proves nothing."""

MAX_SAMPLES: Final = 15
"""The mean of a size covers this many recent passes."""

MIN_EXCESS: Final = 1.1
MIN_EXCESS_S: Final = 0.001
"""Two latencies that differ by a smaller factor, or by fewer seconds, differ by noise only. A
size counts as slower than a larger one, or as more expensive per row than a pass of half as
many rows, only above both."""

MAX_GROWTH: Final = 2
"""A pass may have this many times the rows of the largest cheap pass."""

TRIED_ROWS: Final = 8
"""Any pass but the first may have this many rows: on some CPUs two rows take three times as
long as one, and eight less than eight times."""

MAX_SLOWDOWN: Final = 2.0
"""A single pass counts as at most this many usual ones: a longer one was interrupted."""

SLOWDOWN_WEIGHT: Final = 1 / 2
"""The latest pass has this weight in the slowdown. With less, the observed size would absorb a
part of the slowdown, and all other sizes would look cheap by comparison."""

BRIEF_PASS_S: Final = 0.1
"""A shorter pass counts as a part of one in the next two, which so last as many seconds."""

SLOWDOWN_DECAY: Final = 1 / 128
"""This share of the slowdown's logarithm is dropped with each pass: a host that stays slow is
slow by nature."""

FORGET_AFTER: Final = 128
"""After this many passes, a size that was seen once, and was more expensive than the other
sizes suggest, counts as unknown and is tried again. Its first latency still counts then, so
that a size that is expensive twice stays expensive."""

OUTCOME_PRIOR: Final = 0.5
"""The assumed cost of waiting for an outcome, in passes, until both kinds of pass were seen."""

OUTCOME_DECAY: Final = 1 / 256
"""With each pass of one kind, the estimate for the other moves by this share to what would make
it the better one: an estimate that is too high would never be seen again."""

MEASURE_S: Final = 10.0
"""All passes before the first session together may take this long. A pass that would exceed the
limit, as estimated from the sizes timed so far, is left out."""


class _Size:
    """The recent passes of one size, each divided by the slowdown at its time."""

    def __init__(self) -> None:
        self.usual_s = 0.0  # 0 while it is unknown
        self._recent_s: deque[float] = deque(maxlen=MAX_SAMPLES)

    @property
    def samples(self) -> int:
        return len(self._recent_s)

    def observe(self, seconds: float) -> None:
        least_s = min(self._recent_s, default=0.0)
        if self.samples < MIN_SAMPLES and MAX_SLOWDOWN * seconds < least_s:
            self._recent_s.clear()  # those were interrupted
        self._recent_s.append(seconds)
        max_s = MAX_SLOWDOWN * median(self._recent_s)
        self.usual_s = fmean(min(recent_s, max_s) for recent_s in self._recent_s)


@dataclass(frozen=True, slots=True)
class _Curve:
    """Usual latency over rows, with one entry for each size observed."""

    rows: list[int]
    usual_s: list[float]
    bound_s: list[float]  # the lowest latency of any pass with at least as many rows

    def of(self, rows: int) -> float:
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        if self.rows[right] <= rows:
            return self.usual_s[right]
        left, left_s = (self.rows[right - 1], self.usual_s[right - 1]) if right else (0, 0.0)
        way = (rows - left) / (self.rows[right] - left)
        return min(left_s + way * (self.usual_s[right] - left_s), self.bound_s[right])

    def upto(self, most: int) -> NDArray[np.float64]:
        """Return `of` each number of rows from 0 to `most`: float64[most + 1]."""
        rows, last = np.arange(most + 1), len(self.rows) - 1
        known = np.array([0, *self.rows])
        usual_s, bound_s = np.array([0.0, *self.usual_s]), np.array(self.bound_s)
        at = np.minimum(np.searchsorted(known[1:], rows), last)
        way = (rows - known[at]) / (known[at + 1] - known[at])
        between_s = usual_s[at] + way * (usual_s[at + 1] - usual_s[at])
        within_s = np.minimum(between_s, bound_s[at])
        curve_s: NDArray[np.float64] = np.where(
            known[at + 1] <= rows, usual_s[at + 1], within_s
        )
        return curve_s


def size_class(rows: int) -> int:
    """Return the size that stands for this many rows: up to 64 they stand for themselves, then
    there are 32 sizes to each doubling, because passes of a large host have any number."""
    step = 1 << max(0, rows.bit_length() - 6)
    return (rows + step // 2) // step * step


def _joined(own: Mapping[int, _Size], others: Mapping[int, _Size]) -> dict[int, _Size]:
    """Return the sizes of one kind of pass, and those of the other kind that are larger or
    smaller than all of them: nothing better is known there."""
    first, last = min(own, default=inf), max(own, default=0)
    beyond = {
        rows: size
        for rows, size in others.items()
        if size.usual_s and not first <= rows <= last
    }
    return beyond | dict(own)


def _curve(sizes: Mapping[int, _Size]) -> _Curve:
    """Return the curve. The cheapest larger size bounds each size, unless this is clearly
    slower: some CPU kernels take a third longer for one row than for four."""
    rows = sorted(sizes)
    own_s = [sizes[n].usual_s for n in rows]
    bound_s = list(accumulate(reversed(own_s), min))[::-1]
    usual_s = [
        own if sizes[n].samples >= MIN_SAMPLES and own > _beyond_noise(bound) else bound
        for n, own, bound in zip(rows, own_s, bound_s, strict=True)
    ]
    return _Curve(rows, usual_s, bound_s)


def _beyond_noise(seconds: float) -> float:
    """Return the latency above which another one is slower, and not by noise."""
    return max(MIN_EXCESS * seconds, MIN_EXCESS_S + seconds)


class PassLatency:
    """An online estimate, in seconds. Sizes never observed count as cheap and so get tried."""

    def __init__(self) -> None:
        self._sizes: dict[bool, dict[int, _Size]] = {False: {}, True: {}}
        """Passes without draft tokens, and those with some, by rows."""

        self._slowdown = 1.0
        self._since_forgotten = 0.0  # passes
        self._largest_cheap = 0  # rows
        self._known: dict[bool, _Curve] = {}  # the curves of the current sizes
        self._table_s = np.empty(0)
        """The latency with draft tokens by rows, as far as it was asked for since the last
        observation."""

        self.observed = 0
        """The number of observations: estimates stay as they are until it rises."""

    def observe(self, rows: int, seconds: float, *, with_drafts: bool = False) -> None:
        """Take in one pass. seconds > 0. with_drafts: True if it had draft tokens, in an engine
        where that may matter."""
        self.observe_with_prompt(rows, seconds, with_drafts=with_drafts)  # as a longer pass
        counted = min(1.0, seconds / BRIEF_PASS_S)
        self._known, self._table_s = {}, np.empty(0)
        self.observed += 1
        size = self._sizes[with_drafts].setdefault(size_class(rows), _Size())
        if size.usual_s:
            latest = min(seconds / size.usual_s, MAX_SLOWDOWN * self._slowdown)
            mixed = running_mean(self._slowdown, latest, SLOWDOWN_WEIGHT)
            self._slowdown = mixed ** (1.0 - SLOWDOWN_DECAY * counted)
        size.observe(seconds / self._slowdown)
        self._since_forgotten += counted
        if self._since_forgotten >= FORGET_AFTER:
            self._since_forgotten = 0.0
            for sizes in self._sizes.values():
                _forget(sizes)

    def observe_with_prompt(
        self, rows: int, seconds: float, *, with_drafts: bool = False
    ) -> None:
        """Take in a pass that also read a prompt: its rows alone take no longer than this. On a
        busy host there may be no other passes."""
        if rows > self._largest_cheap:
            half = (rows + 1) // 2
            half_s = self.of(half, with_drafts=with_drafts)
            if half_s <= 0.0 or seconds / rows <= _beyond_noise(half_s) / half:
                self._largest_cheap = rows

    def max_rows(self, needed: int) -> int:
        """Return how many rows a pass may have. needed: the number that it must have."""
        if not self.observed:
            return needed
        return max(TRIED_ROWS, MAX_GROWTH * self._largest_cheap, MAX_GROWTH * needed)

    def of(self, rows: int, *, with_drafts: bool = False) -> float:
        """Return the expected latency of a pass; 0 before the first observation."""
        return self._curve(with_drafts).of(rows) * self._slowdown if self.observed else 0.0

    def with_drafts(self, rows: int, drafts: int) -> NDArray[np.float64]:
        """Return the expected latency with each number of draft tokens, from none to `drafts`,
        beside so many rows without: float64[drafts + 1]."""
        if not self.observed:
            return np.zeros(drafts + 1)
        if len(self._table_s) <= (most := rows + drafts):
            self._table_s = self._curve(True).upto(2 * most) * self._slowdown
        expected_s = self._table_s[rows : most + 1].copy()
        expected_s[0] = self.of(rows)
        return expected_s

    def learned_statistics(self) -> dict[str, float]:
        """Return the expected latency, in seconds, of each size that was observed, and of those
        observed with draft tokens apart."""
        without, having = (sorted(self._sizes[kind]) for kind in (False, True))
        expected_s = {str(rows): self.of(rows) for rows in without}
        return expected_s | {
            f"{rows} with drafts": self.of(rows, with_drafts=True) for rows in having
        }

    def _curve(self, with_drafts: bool) -> _Curve:
        if with_drafts not in self._known:
            own = {n: size for n, size in self._sizes[with_drafts].items() if size.usual_s}
            others = self._sizes[not with_drafts] if with_drafts or not own else {}
            self._known[with_drafts] = _curve(_joined(own, others))
        return self._known[with_drafts]


def _forget(sizes: Mapping[int, _Size]) -> None:
    """Forget sizes that were seen once and are more expensive than the others suggest."""
    if sure := {rows: size for rows, size in sizes.items() if size.samples > 1}:
        curve = _curve(sure)
        for rows, size in sizes.items():
            if size.samples == 1 and size.usual_s > _beyond_noise(curve.of(rows)):
                size.usual_s = 0.0


class OutcomeCost:
    """Learns how much longer it takes from the end of one pass to that of the next if this one
    was planned when the outcome of the first was known. The host's part of a pass then adds to
    the device's; else both overlap."""

    def __init__(self) -> None:
        self._waited_s: float | None = None
        self._ahead_s: float | None = None

    def observe(self, seconds: float, pass_s: float, *, ahead: bool) -> None:
        """Take in the time between the ends of two passes. pass_s: the expected latency of the
        second. ahead: True if it was planned before the first had ended."""
        excess_s = max(-pass_s, min(seconds - pass_s, pass_s))
        waited_s, ahead_s = self._waited_s, self._ahead_s
        if ahead:
            self._ahead_s = ahead_s = running_mean(ahead_s, excess_s, 1 / MAX_SAMPLES)
            if waited_s is not None:
                self._waited_s = running_mean(waited_s, ahead_s, OUTCOME_DECAY)
        else:
            self._waited_s = waited_s = running_mean(waited_s, excess_s, 1 / MAX_SAMPLES)
            if ahead_s is not None:
                self._ahead_s = running_mean(ahead_s, waited_s - pass_s, OUTCOME_DECAY)

    def of(self, pass_s: float) -> float:
        """Return the cost of waiting, in seconds, for a pass of this latency."""
        if self._waited_s is None or self._ahead_s is None:
            return OUTCOME_PRIOR * pass_s
        return max(0.0, self._waited_s - self._ahead_s)


def unmeasured(latency: PassLatency, max_verify: int) -> Iterator[int]:
    """Yield the rows of the passes to time before the first session: one and ever more, up to
    those of max_verify draft tokens; then the fewest, the most and those with most rows per
    second, until they are trusted. Observe each pass before asking for the next."""
    sizes = [1 + (max_verify >> n) for n in reversed(range(max_verify.bit_length() + 1))]
    spent_s, tried = 0.0, set[int]()
    for _ in range(MIN_SAMPLES):
        for rows in sizes:
            if spent_s + latency.of(rows) < MEASURE_S:
                yield rows
                spent_s += latency.of(rows)
                tried.add(rows)
        best = max(tried, key=lambda rows: rows / latency.of(rows))
        sizes = sorted({min(tried), best, max(tried)})


def measured(pass_s: Callable[[int], float], max_verify: int) -> PassLatency:
    """Return the latencies measured before the first session. pass_s(rows) runs a pass and
    returns its seconds."""
    latency = PassLatency()
    pass_s(1)  # may have read the weights from the disk
    for rows in unmeasured(latency, max_verify):
        latency.observe(rows, pass_s(rows))
    return latency
