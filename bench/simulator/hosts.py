"""Both ends of a simulated host have these speeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from bench.results import Host, load
from picospec.link import Path as LinkPath
from speculation.messages import Down, Message, Up
from speculation.wire import encode

# Simulates time: ordered events, durations as curves, and messages on a link.

Action = Callable[[], None]


class Clock:
    """Runs actions in the order of their times, and of the calls for equal times."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._number = count()

    def at(self, when_s: float, action: Action) -> None:
        heappush(self._events, (when_s, next(self._number), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self) -> None:
        """Run all events until none is left."""
        while self._events:
            self.now_s, _, action = heappop(self._events)
            action()


class Curve:
    """A Curve maps rows to seconds: linear between the points and beyond the last; constant if
    there is only one point."""

    def __init__(
        self, seconds: Mapping[int, float], besides: Callable[[int], float] = lambda rows: 0.0
    ) -> None:
        """Set up the curve. besides: a function of rows that returns seconds to add."""
        self._rows = sorted(seconds)
        self._seconds = [seconds[rows] for rows in self._rows]
        self._besides = besides
        self._known: dict[int, float] = {}

    def plus(self, besides: Callable[[int], float]) -> Curve:
        """Return this curve plus `besides`, a function of rows."""
        return Curve(dict(zip(self._rows, self._seconds, strict=True)), besides)

    def of(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = self._read(rows) + self._besides(rows)
        return self._known[rows]

    def _read(self, rows: int) -> float:
        beyond = rows - self._rows[-1]
        if beyond > 0 and len(self._rows) > 1:
            slope = (self._seconds[-1] - self._seconds[-2]) / (self._rows[-1] - self._rows[-2])
            return self._seconds[-1] + beyond * slope
        return float(np.interp(rows, self._rows, self._seconds))


class Line:
    """Delivers a connection's messages in one direction, in order, when the path lets them."""

    def __init__(
        self,
        clock: Clock,
        path: LinkPath,
        deliver: Callable[[Up], None] | Callable[[Down], None],
    ) -> None:
        self._clock = clock
        self._path = path
        self._deliver: Callable[..., None] = deliver
        self._last_s = 0.0

    def send(self, message: Message) -> None:
        arrival_s = self._path.arrival(self._clock.now_s, len(encode(message)))
        self._last_s = max(self._last_s, arrival_s)
        self._clock.at(self._last_s, partial(self._deliver, message))


DEVICE_TWICE_AT: Final = 16
"""A step of the user's device reads this many tokens in twice the time of one. This is an
assumption."""


class Speeds(msgspec.Struct, frozen=True):
    """Both ends of a host were measured at these speeds, in seconds; see bench.calibrate."""

    host: Host
    commit: str
    models: dict[str, str]
    pass_s: dict[int, float]
    """With draft tokens waiting, a pass begins this long after the one before, by its rows."""

    drafting_s: dict[int, float]
    """Passes have this period while the draft model works, if both share a machine's memory."""

    draft_s: dict[int, float]
    """A draft step takes this long while the target works, by the tokens it reads."""

    alone_s: dict[int, float]
    """A draft step takes this long while the target is idle."""

    first_s: float
    """The first token of a prompt that was asked before comes after this time, and its tokens'
    share (prefill_s)."""

    prefill_s: float
    """Each token of such a prompt adds this time."""

    stack_s: float
    """Software adds this to a round trip: from a Commit to a pass over the reply to it."""

    message_s: float
    """Each received message adds this time to the running pass."""


@dataclass(frozen=True, slots=True)
class Hosts:
    pass_s: Curve
    """A target pass takes this long, by the rows of all its sessions together."""

    draft_s: Curve
    """A draft step takes this long while the target works, by the tokens it reads: one, or more
    if the target was ahead of the draft model."""

    drafting_s: Curve | None = None
    """A target pass takes this long, by its rows, while the draft model works all the time and
    both share a memory; None means `pass_s`."""

    alone_s: Curve | None = None
    """A draft step takes this long while the target is idle and both share a memory; None means
    `draft_s`."""

    prefill_s: float = 0.0
    """The target takes this long for a token of the prompt."""

    draft_prefill_s: float = 0.0
    colocated_s: Curve | None = None
    """A draft step on the target's host takes this long, by sessions; None means as long as on
    the device."""

    first_s: float = 0.0
    """A session's first pass takes this much longer, besides its prompt's tokens."""

    stack_s: float = 0.0
    """Software adds this to every round trip."""

    message_s: float = 0.0
    """Each received message adds this time to the running pass, if both share a core."""

    step_s: Curve | None = None
    """The verifier's machine adds this to each pass, by its sessions; None means nothing."""

    def lost_s(self, rows: int, drafting_s: float) -> float:
        """Return the seconds that a draft model adds to a pass by working for `drafting_s`."""
        if self.drafting_s is None:
            return 0.0
        return drafting_s * max(0.0, 1.0 - self.pass_s.of(rows) / self.drafting_s.of(rows))


CPU_BOX = Hosts(
    Curve({1: 0.209, 2: 0.242, 3: 0.193, 5: 0.190, 9: 0.252, 17: 0.354}),
    Curve({1: 0.0196, 2: 0.048, 4: 0.073, 8: 0.120, 16: 0.182}),
    prefill_s=0.010,
    draft_prefill_s=0.010,
)
"""CPU_BOX runs Qwen2.5-Coder 1.5B bf16 in vLLM on one core, 0.5B Q4_0 in llama.cpp on
another."""


def gpu(
    target_s: float,
    draft_s: float,
    colocated_s: float | None = None,
    twice_at: int | None = None,
) -> Hosts:
    """Return hosts with one device at each end.

    colocated_s: the time of a draft step on the target's device. twice_at: the rows of a pass
    that takes twice as long as one of a single row; the time is linear in rows, for both models
    there. None: all passes take the same time, as on a device far from full.
    """

    def curve(seconds: float, twice_at: int | None = twice_at) -> Curve:
        return Curve({1: seconds} if twice_at is None else {1: seconds, twice_at: 2 * seconds})

    shared_s = None if colocated_s is None else curve(colocated_s)
    device_s = curve(draft_s, twice_at and DEVICE_TWICE_AT)
    return Hosts(curve(target_s), device_s, colocated_s=shared_s)


TWICE_AT: Final = 256
"""A pass over this many rows takes twice as long as one over a single row."""

POINTS: Final[Mapping[str, Hosts]] = {
    f"{target:g}/{draft:g} ms": gpu(target / 1e3, draft / 1e3, colocated / 1e3, TWICE_AT)
    for target, draft, colocated in ((72, 24, 8), (146, 43, 14.3), (10, 5, 1.7), (10, 10, 3.3))
}
"""An operating point has a target on a GPU, a draft model on a device, and the same draft model
on the GPU, three times as fast. It is named after the times of a token of the target and of the
draft model on the device. The first two are those of arXiv:2603.19133; the others have an
engine of 10 ms a token."""


def measured(speeds: Speeds) -> Hosts:
    """Return hosts with measured speeds, whose edge has read the prompt before."""
    return Hosts(
        Curve(speeds.pass_s), Curve(speeds.draft_s),
        Curve(speeds.drafting_s), Curve(speeds.alone_s),
        prefill_s=speeds.prefill_s, first_s=speeds.first_s,
        stack_s=speeds.stack_s, message_s=speeds.message_s,
    )  # fmt: skip


def hosts_of(text: str) -> Hosts:
    """Parse "cpu" (CPU_BOX), constant times such as "72/24", or the name of a file of `speeds`.

    Raises ValueError for any other text, and OSError for an unreadable file.
    """
    if text == "cpu":
        return CPU_BOX
    if text.endswith(".json"):
        return measured(load(Path(text), Speeds))
    target_ms, slash, draft_ms = text.partition("/")
    if not slash:
        raise ValueError(f"no hosts {text!r}: give cpu, or target/draft in ms, as 72/24")
    return gpu(float(target_ms) / 1000, float(draft_ms) / 1000)
