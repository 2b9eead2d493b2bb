"""The edge's metrics besides the gateway's: drafting, link, event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LAG_EVERY_S: Final = 0.05
PREFIX: Final = "prefix"
NEAR: Final = "near"
ONLY: Final = "only"
"""An answer began at its verifier for one of these reasons: see `EdgeMetrics.placed`, which
counts those where there was a choice."""

_LAG_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_STEP_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class EdgeMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"picospec:edge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"picospec:edge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"picospec:edge_{name}", text, registry=registry, buckets=buckets)

        looked_up = "Tokens drafted from repeated text, without the draft model."
        stale = "Draft steps whose context was no longer valid when they ended."
        own = "Draft tokens accepted that the verifier proposed itself."
        step = "Time from asking the draft model for a step to its end."
        answering = "Time of these answers, from their first Commit to their last."
        alone = "The same by the target alone, by estimate: its shortest passes, one a token."
        resumed = "Sessions opened again at a verifier that was only out of reach."
        reopened = "Sessions opened to go on with an answer whose verifier was lost."
        placed = "Answers begun there: it has the prompt's beginning, or was near and idle."
        link_bytes = "Bytes of frames, without HTTP: up, down, and open for the prompts."
        self.drafted = counter("draft_tokens", "Tokens the draft model drafted.")
        self.looked_up = counter("lookup_tokens", looked_up)
        self.stale = counter("stale_steps", stale)
        self.accepted = counter("accepted_tokens", "Draft tokens accepted.")
        self.verifier_accepted = counter("verifier_accepted_tokens", own)
        self.wasted = counter("wasted_tokens", "Draft tokens that were not accepted.")
        self.step_s = histogram("draft_step_seconds", step, _STEP_BUCKETS)
        self.link_bytes = counter("link_bytes", link_bytes, "direction")
        self.bytes_up, self.bytes_down, self.bytes_open = (
            self.link_bytes.labels(way) for way in ("up", "down", "open")
        )
        self.posts = counter("draft_posts", "Requests that carried drafts.")
        self.uploaded = counter("uploaded_messages", "Messages on upload streams.")
        self.multiplexed = counter(
            "multiplexed_sessions", "Sessions whose messages came on upload streams."
        )
        self.passes = counter("target_passes", "Passes that made the answers that ended.")
        self.committed = counter("committed_tokens", "Tokens of these answers.")
        self.answering_s = counter("answering_seconds", answering)
        self.alone_s = counter("alone_seconds", alone)
        self.resumes = counter("link_resumes", resumed)
        self.reopens = counter("reopened_answers", reopened)
        self.fallback_answers = counter(
            "fallback_answers", "Answers of a fallback, without a verifier."
        )
        self.rtt_s = gauge("link_rtt_seconds", "Smoothed round trip to the verifier in use.")
        self.read_tokens = gauge(
            "read_tokens",
            "Tokens of prompts that the draft model read, without those it still had.",
        )
        self.verifier_ready = gauge("verifier_ready", "Whether it answers.", "verifier")
        self.verifier_rtt_s = gauge("verifier_rtt_seconds", "Smoothed round trip.", "verifier")
        self.verifier_sessions = gauge(
            "verifier_sessions", "Sessions of this edge that run there.", "verifier"
        )
        self.placed = counter("placed_answers", placed, "verifier", "reason")
        self.lag_s = histogram(
            "event_loop_lag_seconds", "How late the event loop ran a timer.", _LAG_BUCKETS
        )

    def forget(self, verifier: str) -> None:
        """Show no more of the verifier with this label."""
        for each in (self.verifier_ready, self.verifier_rtt_s, self.verifier_sessions):
            with suppress(KeyError):
                each.remove(verifier)
        for reason in (PREFIX, NEAR):
            with suppress(KeyError):
                self.placed.remove(verifier, reason)

    async def watch_lag(self, clock: Callable[[], float]) -> None:
        """Sample the event loop's lag until cancelled. clock: the loop's own, in seconds."""
        while True:
            due = clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lag_s.observe(max(0.0, clock() - due))
