"""How fast both ends are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.simulator.clock import Curve

DEVICE_TWICE_AT: Final = 16
"""Tokens over which a step of the user's device is taken to last twice as long as over one."""


@dataclass(frozen=True, slots=True)
class Hosts:
    pass_s: Curve
    """A target pass, over rows: those of all its sessions together."""

    draft_s: Curve
    """A draft step while the target works, over the tokens it must read: 1, or more after the
    target went ahead."""

    drafting_s: Curve | None = None
    """A target pass while the draft model works all the time, where both share a memory, over
    rows; None: no other."""

    alone_s: Curve | None = None
    """A draft step while the target rests, where both share a memory; None: no other."""

    prefill_s: float = 0.0
    """The target's time for a token of the prompt."""

    draft_prefill_s: float = 0.0
    beside_s: Curve | None = None
    """A draft step on the target's host, over sessions; None: for all as on the device."""

    first_s: float = 0.0
    """A session's first pass, besides its prompt's tokens."""

    stack_s: float = 0.0
    """What software adds to every round trip."""

    message_s: float = 0.0
    """What a message taken in adds to the pass that runs, where both share a core."""

    def lost_s(self, rows: int, drafting_s: float) -> float:
        """Return by how much a draft model that works so long prolongs a pass."""
        if self.drafting_s is None:
            return 0.0
        return drafting_s * max(0.0, 1.0 - self.pass_s.of(rows) / self.drafting_s.of(rows))


CPU_BOX = Hosts(
    Curve({1: 0.209, 2: 0.242, 3: 0.193, 5: 0.190, 9: 0.252, 17: 0.354}),
    Curve({1: 0.0196, 2: 0.048, 4: 0.073, 8: 0.120, 16: 0.182}),
    prefill_s=0.010,
    draft_prefill_s=0.010,
)
"""Qwen2.5-Coder 1.5B bf16 in vLLM on one core, 0.5B Q4_0 in llama.cpp on another."""


def gpu(
    target_s: float,
    draft_s: float,
    beside_s: float | None = None,
    twice_at: int | None = None,
) -> Hosts:
    """Return hosts with one device at each end.

    beside_s: a draft step on the target's device. twice_at: rows of a pass that takes twice as
    long as one of a single row, and so on in proportion, for both models there. None: all
    cost the same, as far from full.
    """

    def curve(seconds: float, twice_at: int | None) -> Curve:
        more = {} if twice_at is None else {twice_at: 2 * seconds}
        return Curve({1: seconds, **more})

    beside = None if beside_s is None else curve(beside_s, twice_at)
    device = curve(draft_s, twice_at and DEVICE_TWICE_AT)
    return Hosts(curve(target_s, twice_at), device, beside_s=beside)
