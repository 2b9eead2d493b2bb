"""Defines Prometheus metrics, with vLLM's names and our prefix so that its dashboards fit."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from picospec.gateway.ports import Statistics

_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Registers all metrics of one app, and those of its process, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"picospec:{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"picospec:{name}", text, buckets=buckets, registry=registry)

        self.running = Gauge(
            "picospec:num_requests_running", "Requests being answered.", registry=registry
        )
        self.requests = counter("requests", "Requests answered, by HTTP status.", "status")
        self.failed_messages = counter(
            "failed_draft_messages", "Draft messages that got an error, by status.", "status"
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens taken in.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.first_token_s = histogram(
            "time_to_first_token_seconds", "To a first token.", _LONG_S
        )
        self.token_gap_s = histogram("inter_token_latency_seconds", "Between tokens.", _SHORT_S)
        self.request_s = histogram("e2e_request_latency_seconds", "Whole request.", _LONG_S)
        self._drafts = counter("spec_decode_num_drafts", "Passes that verified drafts.")
        self._drafted = counter("spec_decode_num_draft_tokens", "Draft tokens verified.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Draft tokens accepted.")
        self._per_position = counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted, by place.", "position"
        )
        self._positions: list[
            Counter
        ] = []  # finding one by its label takes as long as counting

    def speculated(self, counted: Statistics) -> None:
        """Add the statistics of one request."""
        self._drafts.inc(counted.drafts)
        self._drafted.inc(counted.draft_tokens)
        self._accepted.inc(counted.accepted_tokens)
        for i in range(len(self._positions), len(counted.accepted_per_position)):
            self._positions.append(self._per_position.labels(str(i)))
        for position, accepted in zip(
            self._positions, counted.accepted_per_position, strict=False
        ):
            position.inc(accepted)
