"""What a tenant may use, on a clock that the test holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from picospec.gateway.errors import RateLimited
from picospec.gateway.tenants import KeyLimits, Tenant, TenantMetrics


def tenant(**limits: int) -> Tenant:
    return Tenant("ann", KeyLimits(**limits), TenantMetrics(CollectorRegistry()))


def test_a_minutes_requests_may_come_at_once_and_then_as_they_come_back() -> None:
    ann = tenant(requests_a_minute=6)
    for _ in range(6):
        ann.admit(100.0)

    with pytest.raises(RateLimited, match="6 requests a minute") as limited:
        ann.admit(100.0)
    assert limited.value.retry_after_s == 10
    with pytest.raises(RateLimited) as still:
        ann.admit(107.5)
    assert still.value.retry_after_s == 3
    ann.admit(110.0)
    with pytest.raises(RateLimited):
        ann.admit(110.0)


@given(st.lists(st.floats(0.0, 30.0), max_size=60), st.integers(1, 9))
def test_whoever_comes_again_when_told_to_is_let_in_and_no_minute_has_twice_the_limit(
    pauses: list[float], a_minute: int
) -> None:
    ann, now, admitted = tenant(requests_a_minute=a_minute), 0.0, []
    for pause in pauses:
        now += pause
        try:
            ann.admit(now)
        except RateLimited as limited:
            now += limited.retry_after_s
            ann.admit(now)
        admitted.append(now)

    for begin in admitted:
        within = sum(begin <= other < begin + 60.0 for other in admitted)
        assert within <= 2 * a_minute


def test_so_many_answers_may_run_at_once_and_a_choice_counts_as_one() -> None:
    ann = tenant(sessions=3)
    ann.begin(0.0, 2)

    with pytest.raises(RateLimited, match="3 answers at once") as limited:
        ann.begin(0.0, 2)
    ann.begin(0.0)
    with pytest.raises(RateLimited):
        ann.check_room(0.0)
    ann.end(2)
    ann.check_room(0.0)

    assert limited.value.retry_after_s == 1


def test_an_answer_begins_while_tokens_are_left_and_the_next_waits_for_what_it_took() -> None:
    ann = tenant(tokens_a_minute=60)
    ann.begin(0.0)
    ann.spend(90, 0.0)

    with pytest.raises(RateLimited, match="60 tokens a minute") as limited:
        ann.begin(0.0)
    assert limited.value.retry_after_s == 31
    ann.begin(31.0)
    ann.admit(0.0)


def test_what_is_not_used_of_a_minute_is_not_saved_for_the_next() -> None:
    ann = tenant(requests_a_minute=2)
    ann.admit(0.0)

    for _ in range(2):
        ann.admit(10_000.0)
    with pytest.raises(RateLimited):
        ann.admit(10_000.0)


def test_without_limits_nothing_is_limited_and_all_is_counted() -> None:
    registry = CollectorRegistry()
    ann = Tenant("ann", KeyLimits(), TenantMetrics(registry))

    for _ in range(1000):
        ann.admit(0.0)
    ann.begin(0.0, 1000)
    ann.end(400)
    ann.spend(10**9, 0.0)
    ann.check_room(0.0)

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"picospec:tenant_{name}", {"tenant": "ann"})

    assert (value("requests_total"), value("answers"), value("tokens_total")) == (
        1000,
        600,
        1e9,
    )


def test_other_limits_count_at_once() -> None:
    ann = tenant(requests_a_minute=1)
    ann.admit(0.0)

    ann.limit(KeyLimits())

    ann.admit(0.0)
