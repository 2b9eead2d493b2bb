"""The verifier's metrics cover sessions, passes, waits for drafts, prefilled tokens, KV cache
and queue, beside the gateway's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.metrics import Metrics, ModelMetrics
from gateway.ports import Statistics
from speculation.messages import Totals

_PASS_S: Final = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
"""A GPU's passes take 3 to 30 ms, and a CPU's up to seconds."""

_DRAFT_WAIT_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class VerifierMetrics:
    """Shares a registry with the gateway's metrics: sessions count their tokens there, like
    requests without an edge."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.gateway, self._registry = Metrics(registry), registry
        self._target: ModelMetrics | None = None
        histogram = partial(Histogram, registry=registry)
        self._pass_s = histogram("picospec:pass_seconds", "A target pass.", buckets=_PASS_S)
        self._rows = histogram("picospec:pass_rows", "Rows of a pass.", buckets=_ROWS)
        self.draft_wait_s = histogram(
            "picospec:draft_wait_seconds",
            "Time a pass waited for drafts about to arrive.",
            buckets=_DRAFT_WAIT_S,
        )
        self.open = Gauge("picospec:sessions_open", "Sessions running.", registry=registry)
        self.faults = Counter(
            "picospec:session_faults", "Sessions that failed.", ["code"], registry=registry
        )
        self.refused = Counter(
            "picospec:sessions_refused", "Sessions refused when full.", registry=registry
        )
        self.prefilled = Counter(
            "picospec:prefilled_tokens",
            "Prompt tokens that llama.cpp decoded, without those whose KV was still there.",
            registry=registry,
        )

    def serves(self, model: str) -> None:
        """Set the target's name, which labels what is counted for passes of all requests."""
        self._target = self.gateway.of(model)

    def follow(
        self, model: str, kv_usage: Callable[[], float], waiting: Callable[[], int]
    ) -> None:
        """Call these for each answer of /metrics. vLLM has its own metrics instead."""
        Gauge(
            "picospec:kv_cache_usage_perc",
            "Share of the KV cache that running sessions hold; 1 is all of it.",
            ["model_name"],
            registry=self._registry,
        ).labels(model).set_function(kv_usage)
        Gauge(
            "picospec:num_requests_waiting",
            "Sessions and plain requests that wait for a place in the target.",
            ["model_name"],
            registry=self._registry,
        ).labels(model).set_function(waiting)

    def passed(self, rows: int, seconds: float) -> None:
        """Record a pass over `rows` rows of all its sessions."""
        self._rows.observe(rows)
        self._pass_s.observe(seconds)

    def judged(self, drafted: int, accepted: int) -> None:
        """Record that a pass judged `drafted` draft tokens of one session."""
        if drafted:
            target = self._target or self.gateway.of("")
            target.speculated(Statistics(Totals(1, drafted, accepted), (1,) * accepted))
