"""Describes a running answer in one line: tokens a second, acceptance, round trip.

The numbers come from the edge's /metrics, so that they are known while the answer streams; they
include what other clients do at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

_FIELDS: Final = {
    "picospec:generation_tokens_total": "generated_tokens",
    "picospec:edge_draft_tokens_total": "drafted_tokens",
    "picospec:edge_accepted_tokens_total": "accepted_tokens",
    "picospec:edge_link_rtt_seconds": "rtt_s",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of the edge at one moment; those that it does not report are 0."""

    at_s: float
    generated_tokens: float = 0
    drafted_tokens: float = 0
    accepted_tokens: float = 0
    rtt_s: float = 0

    @classmethod
    def parse(cls, text: str, at_s: float) -> Self:
        """Read Prometheus' text format; lines of other metrics are skipped."""
        lines = (line.split() for line in text.splitlines())
        known = (words for words in lines if len(words) >= 2 and words[0] in _FIELDS)
        return cls(at_s, **{_FIELDS[words[0]]: float(words[1]) for words in known})


def describe(before: Reading, after: Reading) -> str:
    """Describe what happened between two readings; unknown numbers are left out."""
    seconds = after.at_s - before.at_s
    tokens = after.generated_tokens - before.generated_tokens
    drafted = after.drafted_tokens - before.drafted_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    parts = (
        f"{tokens / seconds:.1f} tokens/s" if seconds > 0 and tokens > 0 else "",
        f"{accepted / drafted:.0%} of drafts accepted" if drafted > 0 else "",
        f"RTT {after.rtt_s * 1000:.0f} ms" if after.rtt_s > 0 else "",
    )
    return " · ".join(filter(None, parts))
