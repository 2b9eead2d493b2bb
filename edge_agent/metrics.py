"""What the edge counts beyond the gateway's figures: drafting, the link, the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LAG_EVERY_S: Final = 0.05

_LAG_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_STEP_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class EdgeMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.drafted = Counter(
            "picospec:edge_draft_tokens", "Tokens the draft model guessed.", registry=registry
        )
        self.looked_up = Counter(
            "picospec:edge_lookup_tokens",
            "Tokens guessed from what was said before, without the draft model.",
            registry=registry,
        )
        self.stale = Counter(
            "picospec:edge_stale_steps",
            "Draft steps whose context was no longer true when they ended.",
            registry=registry,
        )
        self.accepted = Counter(
            "picospec:edge_accepted_tokens", "Guesses that were committed.", registry=registry
        )
        self.wasted = Counter(
            "picospec:edge_wasted_tokens",
            "Guesses dropped with their chain, or left over at the end.",
            registry=registry,
        )
        self.step_s = Histogram(
            "picospec:edge_draft_step_seconds",
            "From asking for a guess to having it.",
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self.link_bytes = Counter(
            "picospec:edge_link_bytes",
            "Frames without HTTP: up, down, and open for the prompts.",
            ["direction"],
            registry=registry,
        )
        self.posts = Counter(
            "picospec:edge_draft_posts", "Requests that carried drafts.", registry=registry
        )
        self.resumes = Counter(
            "picospec:edge_link_resumes",
            "Streams taken up again after a cut.",
            registry=registry,
        )
        self.rtt_s = Gauge(
            "picospec:edge_link_rtt_seconds", "Smoothed round trip.", registry=registry
        )
        self.lag_s = Histogram(
            "picospec:edge_event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    async def watch_lag(self, clock: Callable[[], float]) -> None:
        """Sample the event loop's lag until cancelled. clock: the loop's own, in seconds."""
        while True:
            due = clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lag_s.observe(max(0.0, clock() - due))
