"""The requests, tokens and answers of a tenant are counted, limited, and shown in metrics,
without a clock.

All times are in seconds, on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.errors import RateLimited
from gateway.keys import KeyLimits, ModelNames
from gateway.log_limits import LogLimit

MINUTE_S: Final = 60.0

ROUNDING_S: Final = 1e-6
"""Waits below this count as zero: rounding may leave a remainder for a client that waited
exactly `retry-after`."""


class TenantMetrics:
    """Holds metrics labelled with the names of tenants, which are as many as the keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(
                f"picospec:tenant_{name}", text, ("tenant", *labels), registry=registry
            )

        self.requests = counter("requests", "Requests that were counted and let in.")
        self.tokens = counter("tokens", "Tokens of prompts and answers.")
        self.limited = counter("limited", "Requests that got a 429, by limit.", "limit")
        self.answers = Gauge(
            "picospec:tenant_answers",
            "Answers being generated.",
            ("tenant",),
            registry=registry,
        )
        self.keys_file_unread = Gauge(
            "picospec:keys_file_unread",
            "1 while the file of keys that is there could not be read: older keys go on.",
            registry=registry,
        )


class _OwnMetrics:
    """Holds the metrics of one tenant, which are shown from the start on."""

    def __init__(self, name: str, metrics: TenantMetrics) -> None:
        self.requests = metrics.requests.labels(name)
        self.tokens = metrics.tokens.labels(name)
        self.answers = metrics.answers.labels(name)
        self.limited = partial(metrics.limited.labels, name)


class Tenant:
    def __init__(
        self, name: str, limits: KeyLimits, metrics: TenantMetrics, identity: str = ""
    ) -> None:
        self.name = name
        self.models: ModelNames = ()
        """The tenant's keys open these models alone; if empty, all."""

        self.identity = identity or name
        """Stands for the tenant's first key in salts, by which nobody is served what others
        have asked: no name, because others may have the same or know it."""

        self.limited = LogLimit()
        """Limits the log lines that report this tenant at a limit, and is asked before each of
        them. Rejected requests have no log lines of their own."""

        self._answers = 0
        self._running = 0  # requests, each on a connection or a stream of its own
        self.held_bytes = 0
        """The bodies of the tenant's requests have this many bytes."""

        self._metrics = _OwnMetrics(name, metrics)
        self.limit(limits)

    def limit(self, limits: KeyLimits) -> None:
        """Set these limits. The requests and tokens used in the last minute are forgotten."""
        self.limits = limits
        self._requests = _Bucket(limits.requests_a_minute)
        self._tokens = _Bucket(limits.tokens_a_minute)

    def opens(self, model: str) -> bool:
        """Return True if the tenant may ask for a model. model: its name, or an adapter's."""
        return not self.models or model in self.models

    def usual_model(self, model: str | None) -> str | None:
        """Return the model that a request asks for. model: None, if it names none."""
        return model if model is not None or not self.models else self.models[0]

    def admit(self, now: float) -> None:
        """Count a request. Raises RateLimited."""
        if wait_s := self._requests.wait_s(now):
            raise self._limited("requests", self.limits.requests_a_minute, wait_s)
        self._requests.take(1, now)
        self._metrics.requests.inc()

    @contextmanager
    def running(self, most: int | None) -> Iterator[None]:
        """Count a request while it runs. most: the tenant may have this many at once; None: any
        number. Raises RateLimited."""
        if most is not None and self._running >= most:
            raise self._limited("connections", most)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def check_room(self, now: float, answers: int = 1) -> None:
        """Raise RateLimited unless this many answers may begin."""
        most = self.limits.sessions
        if most is not None and self._answers + answers > most:
            raise self._limited("sessions", most)
        if wait_s := self._tokens.wait_s(now):
            raise self._limited("tokens", self.limits.tokens_a_minute, wait_s)

    def begin(self, now: float, answers: int = 1) -> None:
        """Begin answers; `end` must be called for each of them. Raises RateLimited."""
        self.check_room(now, answers)
        self._answers += answers
        self._metrics.answers.inc(answers)

    def end(self, answers: int = 1) -> None:
        self._answers -= answers
        self._metrics.answers.dec(answers)

    def spend(self, tokens: int, now: float) -> None:
        """Count tokens of a prompt or an answer."""
        self._tokens.take(tokens, now)
        self._metrics.tokens.inc(tokens)

    def _limited(self, limit: str, most: int | None, wait_s: float = 0.0) -> RateLimited:
        self._metrics.limited(limit).inc()
        at_once = {"sessions": "answers at once", "connections": "requests at once"}
        what = at_once.get(limit, f"{limit} a minute")
        return RateLimited(f"no more than {most} {what}", retry_after_s=ceil(wait_s) or 1)


class _Bucket:
    """A token bucket fills steadily, from empty to full in a minute, and may be overdrawn.
    per_minute: amount of a full bucket, None for one that is never empty."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute or 0)
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Return the seconds until the bucket holds at least one; 0.0 if it does already."""
        if self._per_minute is None:
            return 0.0
        self._fill(now)
        wait_s = (1.0 - self._level) * MINUTE_S / self._per_minute
        return wait_s if wait_s > ROUNDING_S else 0.0

    def take(self, amount: int, now: float) -> None:
        if self._per_minute is not None:
            self._fill(now)
            self._level -= amount

    def _fill(self, now: float) -> None:
        per_minute = self._per_minute or 0
        gained = (now - self._at) * per_minute / MINUTE_S
        self._level, self._at = min(float(per_minute), self._level + gained), now
