"""Defines Prometheus metrics, with vLLM's names, labels and units behind a prefix of our own.

What vLLM labels with `model_name` has that label here. A model's name is the engine's, never a
client's text, so it has few values; after MAX_MODELS names all further ones share OTHERS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache, partial
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.ports import Statistics
from speculation.model_facts import PROTOCOL_VERSION

_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

MAX_MODELS: Final = 32
"""So many models have series of their own: a target and its adapters."""

OTHERS: Final = "others"

ENDINGS: Final = ("stop", "length", "abort", "error")
"""vLLM's reasons for which a choice ends; a tool call counts as a stop."""


class Metrics:
    """Registers all metrics of one app, and those of its process, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        build = Info("picospec:build", "The version of PicoSpec.", registry=registry)
        build.info({"version": version("picospec"), "protocol": str(PROTOCOL_VERSION)})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"picospec:{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            of = ("model_name",)
            return Histogram(f"picospec:{name}", text, of, buckets=buckets, registry=registry)

        one = "model_name"
        self.requests = counter(
            "requests", "Requests answered, by HTTP status and kind of path.", "status", "route"
        )
        self.failed_messages = counter(
            "failed_draft_messages", "Draft messages that got an error, by status.", "status"
        )
        about = "Requests whose answers are being generated."
        self.running = Gauge("picospec:num_requests_running", about, (one,), registry=registry)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens taken in.", one)
        self.generation_tokens = counter("generation_tokens", "Tokens generated.", one)
        self.success = counter(
            "request_success", "Choices that ended, by reason.", one, "finished_reason"
        )
        self.first_token_s = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _LONG_S
        )
        self.token_gap_s = histogram(
            "inter_token_latency_seconds", "From a token to the next.", _SHORT_S
        )
        self.request_s = histogram(
            "e2e_request_latency_seconds", "From a request to the end of its answer.", _LONG_S
        )
        self.drafts = counter("spec_decode_num_drafts", "Passes that judged drafts.", one)
        self.drafted = counter("spec_decode_num_draft_tokens", "Draft tokens judged.", one)
        self.accepted = counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted.", one
        )
        self.per_position = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by their place in the pass.",
            one,
            "position",
        )
        self._models: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> ModelMetrics:
        """Return the series of a model. They begin with the first call."""
        if (series := self._models.get(model)) is None:
            name = model if len(self._models) < MAX_MODELS else OTHERS
            series = self._models[name] = self._models.get(name) or ModelMetrics(self, name)
        return series


class ModelMetrics:
    """The series of one model: finding one by its labels takes as long as counting."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.running = metrics.running.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.first_token_s = metrics.first_token_s.labels(model)
        self.token_gap_s = metrics.token_gap_s.labels(model)
        self.request_s = metrics.request_s.labels(model)
        self.success = {each: metrics.success.labels(model, each) for each in ENDINGS}
        self._drafts = metrics.drafts.labels(model)
        self._drafted = metrics.drafted.labels(model)
        self._accepted = metrics.accepted.labels(model)
        self._at_position = cache(partial(metrics.per_position.labels, model))

    def ended(self, finish: str) -> None:
        """Count a choice that has ended, as vLLM names the reasons."""
        self.success["length" if finish == "length" else "stop"].inc()

    def speculated(self, counted: Statistics) -> None:
        """Add the statistics of one request."""
        self._drafts.inc(counted.drafts)
        self._drafted.inc(counted.draft_tokens)
        self._accepted.inc(counted.accepted_tokens)
        for position, accepted in enumerate(counted.accepted_per_position):
            self._at_position(str(position)).inc(accepted)


class WithoutCreatedSeries(Collector):
    """A registry as /metrics shows it: without the time at which each series began, which would
    double the page."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


SLOW_S: Final = 0.05
RARELY: Final = 20
"""A page of metrics that takes more than SLOW_S of processor time, as with thousands of keys,
is shown for RARELY times as long: anybody may ask for it, and nothing else runs meanwhile."""


class MetricsPage:
    """Keeps the page of a registry if it takes long to make."""

    def __init__(self) -> None:
        self._page, self._until = b"", 0.0

    def of(self, registry: CollectorRegistry) -> bytes:
        """Return the metrics, which may be RARELY times as old as they took."""
        if time.monotonic() >= self._until:
            begun = time.thread_time()
            self._page = exposition(registry)
            took_s = time.thread_time() - begun
            self._until = time.monotonic() + (RARELY * took_s if took_s > SLOW_S else 0.0)
        return self._page


def exposition(registry: CollectorRegistry) -> bytes:
    """Return the metrics of a registry in Prometheus' text format."""
    return generate_latest(WithoutCreatedSeries(registry))
