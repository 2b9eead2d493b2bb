"""Defines Prometheus metrics, with vLLM's names, labels and units behind a prefix of our own.

What vLLM labels with `model_name` has that label here. A model's name is the engine's, never a
client's text, so it has few values; after MAX_MODELS names all further ones share OTHERS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Final, Literal

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

Ending = Literal["stop", "length", "abort", "error"]
"""vLLM's reasons for which a choice ends; a tool call counts as a stop."""

_ENDINGS: Final[tuple[Ending, ...]] = ("stop", "length", "abort", "error")


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
        self._running = Gauge(
            "picospec:num_requests_running",
            "Requests whose answers are being generated.",
            (one,),
            registry=registry,
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens taken in.", one)
        self._generation_tokens = counter("generation_tokens", "Tokens generated.", one)
        self._success = counter(
            "request_success", "Choices that ended, by reason.", one, "finished_reason"
        )
        self._first_token_s = histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _LONG_S
        )
        self._token_gap_s = histogram(
            "inter_token_latency_seconds", "From a token to the next.", _SHORT_S
        )
        self._request_s = histogram(
            "e2e_request_latency_seconds", "From a request to the end of its answer.", _LONG_S
        )
        self._drafts = counter("spec_decode_num_drafts", "Passes that judged drafts.", one)
        self._drafted = counter("spec_decode_num_draft_tokens", "Draft tokens judged.", one)
        self._accepted = counter(
            "spec_decode_num_accepted_tokens", "Draft tokens accepted.", one
        )
        self._per_position = counter(
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
            series = self._models[name] = self._models.get(name) or self._begin(name)
        return series

    def _begin(self, model: str) -> ModelMetrics:
        return ModelMetrics(
            self._running.labels(model),
            self._prompt_tokens.labels(model),
            self._generation_tokens.labels(model),
            self._first_token_s.labels(model),
            self._token_gap_s.labels(model),
            self._request_s.labels(model),
            {each: self._success.labels(model, each) for each in _ENDINGS},
            self._drafts.labels(model),
            self._drafted.labels(model),
            self._accepted.labels(model),
            partial(self._per_position.labels, model),
        )


@dataclass(slots=True)
class ModelMetrics:
    """The series of one model: finding one by its labels takes as long as counting."""

    running: Gauge
    prompt_tokens: Counter
    generation_tokens: Counter
    first_token_s: Histogram
    token_gap_s: Histogram
    request_s: Histogram
    success: Mapping[Ending, Counter]
    _drafts: Counter
    _drafted: Counter
    _accepted: Counter
    _of_position: Callable[[str], Counter]
    _positions: list[Counter] = field(default_factory=list)

    def ended(self, finish: str) -> None:
        """Count a choice that has ended, as vLLM names the reasons."""
        self.success["length" if finish == "length" else "stop"].inc()

    def speculated(self, counted: Statistics) -> None:
        """Add the statistics of one request."""
        self._drafts.inc(counted.drafts)
        self._drafted.inc(counted.draft_tokens)
        self._accepted.inc(counted.accepted_tokens)
        for i in range(len(self._positions), len(counted.accepted_per_position)):
            self._positions.append(self._of_position(str(i)))
        for position, accepted in zip(
            self._positions, counted.accepted_per_position, strict=False
        ):
            position.inc(accepted)


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
    """Keeps the page of a registry if it takes long to make. clock, computed: return the time
    and the thread's processor time, in seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        computed: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._computed = clock, computed
        self._page, self._until = b"", 0.0

    def of(self, registry: CollectorRegistry) -> bytes:
        """Return the metrics, which may be RARELY times as old as they took."""
        if self._clock() >= self._until:
            begun = self._computed()
            self._page = exposition(registry)
            took_s = self._computed() - begun
            self._until = self._clock() + (RARELY * took_s if took_s > SLOW_S else 0.0)
        return self._page


def exposition(registry: CollectorRegistry) -> bytes:
    """Return the metrics of a registry in Prometheus' text format."""
    return generate_latest(WithoutCreatedSeries(registry))
