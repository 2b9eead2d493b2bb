"""How it is going, in one line: tokens a second, acceptance, round trip.

Read from the edge's own /metrics, so that the line is live; what another client does at the
same time is in it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

_GENERATED = "picospec:generation_tokens_total"
_DRAFTED = "picospec:edge_draft_tokens_total"
_ACCEPTED = "picospec:edge_accepted_tokens_total"
_ROUND_TRIP = "picospec:edge_link_rtt_seconds"


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of the edge at one moment. What it does not report is 0."""

    at_s: float
    """Monotonic seconds."""

    generated_tokens: float = 0
    drafted_tokens: float = 0
    accepted_tokens: float = 0
    rtt_s: float = 0

    @classmethod
    def parse(cls, text: str, at_s: float) -> Self:
        """Read Prometheus' text format; lines of other metrics are passed over."""
        lines = (line.split() for line in text.splitlines())
        values = {words[0]: float(words[1]) for words in lines if _is_wanted(words)}
        return cls(
            at_s,
            values.get(_GENERATED, 0),
            values.get(_DRAFTED, 0),
            values.get(_ACCEPTED, 0),
            values.get(_ROUND_TRIP, 0),
        )


def describe(before: Reading, after: Reading) -> str:
    """Say what happened between two readings; figures that are not known are left out."""
    seconds = after.at_s - before.at_s
    tokens = after.generated_tokens - before.generated_tokens
    drafted = after.drafted_tokens - before.drafted_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    parts = []
    if seconds > 0 and tokens > 0:
        parts.append(f"{tokens / seconds:.1f} tokens/s")
    if drafted > 0:
        parts.append(f"{accepted / drafted:.0%} of drafts accepted")
    if after.rtt_s > 0:
        parts.append(f"RTT {after.rtt_s * 1000:.0f} ms")
    return " · ".join(parts)


def _is_wanted(words: list[str]) -> bool:
    return len(words) >= 2 and words[0] in (_GENERATED, _DRAFTED, _ACCEPTED, _ROUND_TRIP)
