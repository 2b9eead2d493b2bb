"""What is counted of sessions: the same names as for requests without an edge."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry

from picospec.gateway.metrics import Metrics
from picospec.gateway.tracing import NO_SPAN
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.sessions.session import SessionAccount
from tests.verifier.conftest import metrics, until_open
from tests.verifier.down import opened
from tests.verifier.fake_target import SLOW, opening


def test_tokens_are_counted_and_timed_at_commits() -> None:
    registry = CollectorRegistry()
    account = SessionAccount(Metrics(registry), NO_SPAN, opened=10.0)

    account.committed(1, now=10.5)
    account.committed(4, now=10.9)
    account.finished(now=11.0)

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"picospec:{name}")

    assert value("generation_tokens_total") == 5
    assert value("time_to_first_token_seconds_count") == 1
    assert value("time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value("inter_token_latency_seconds_count") == 1
    assert value("inter_token_latency_seconds_sum") == pytest.approx(0.1)
    assert value("e2e_request_latency_seconds_sum") == pytest.approx(1.0)


async def test_a_sessions_tokens_and_times_are_among_the_verifiers_metrics(
    client: httpx.AsyncClient,
) -> None:
    before = await metrics(client)
    async with opened(client, opening(prompt=(SLOW, 5, 6), max_tokens=4)) as stream:
        await stream.rest()
    await until_open(client, 0)
    after = await metrics(client)

    def more(name: str) -> float:
        return after[f"picospec:{name}"] - before[f"picospec:{name}"]

    assert more("prompt_tokens_total") == 3
    assert more("generation_tokens_total") == 4
    assert more("time_to_first_token_seconds_count") == 1
    assert more("inter_token_latency_seconds_count") == 3
    assert 0.25 < more("inter_token_latency_seconds_sum") < 3.0  # three passes of 0.1 s
    assert more("e2e_request_latency_seconds_count") == 1


def test_the_passes_of_a_gpu_are_told_apart() -> None:
    registry = CollectorRegistry()
    counted = VerifierMetrics(registry)

    for seconds in (0.0025, 0.0035, 0.0055, 0.007):
        counted.passed(1, seconds)

    bounds = ("0.002", "0.003", "0.004", "0.005", "0.006", "0.008")
    name = "picospec:pass_seconds_bucket"
    found = [registry.get_sample_value(name, {"le": bound}) for bound in bounds]
    assert found == [0, 1, 2, 2, 3, 4]


def test_kv_use_and_queue_are_looked_up_when_they_are_asked_for() -> None:
    registry = CollectorRegistry()
    waiting: list[str] = []
    VerifierMetrics(registry).follow(lambda: 0.25 * len(waiting), lambda: len(waiting))

    waiting += ["a", "b"]

    assert registry.get_sample_value("picospec:num_requests_waiting") == 2
    assert registry.get_sample_value("picospec:kv_cache_usage_perc") == 0.5
