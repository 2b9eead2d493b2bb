"""A path decides when bytes arrive; it needs a clock reading and a seeded chance."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.bench.link import Conditions, Path


def test_bytes_leave_the_line_one_after_the_other_at_its_rate() -> None:
    path = Path(Conditions(rate_mbit=8), Random(1))  # one byte each microsecond

    arrivals = [path.arrival(1.0, 1000) for _ in range(3)]

    assert arrivals == pytest.approx([1.001, 1.002, 1.003])


def test_an_idle_line_saves_up_no_credit() -> None:
    path = Path(Conditions(rate_mbit=8), Random(1))
    path.arrival(0.0, 1000)

    assert path.arrival(9.0, 1000) == pytest.approx(9.001)


@given(jitter_ms=st.floats(0, 50), seed=st.integers(0, 1000))
def test_jitter_stays_within_half_its_setting_each_way(jitter_ms: float, seed: int) -> None:
    path = Path(Conditions(rtt_ms=100, jitter_ms=jitter_ms), Random(seed))

    travel_ms = [path.arrival(0.0, 1) * 1000 for _ in range(20)]

    assert all(abs(ms - 50) <= jitter_ms / 2 + 1e-9 for ms in travel_ms)


@pytest.mark.parametrize(("rtt_ms", "late_ms"), [(20, 200), (300, 300)])
def test_a_lost_segment_comes_one_retransmission_timeout_later(
    rtt_ms: float, late_ms: float
) -> None:
    path = Path(Conditions(rtt_ms=rtt_ms, loss=0.25), Random(1))

    travel_ms = [round(path.arrival(0.0, 1) * 1000, 6) for _ in range(4000)]

    assert set(travel_ms) == {rtt_ms / 2, rtt_ms / 2 + late_ms}
    assert travel_ms.count(rtt_ms / 2 + late_ms) == pytest.approx(1000, abs=120)


def test_the_same_seed_gives_the_same_link() -> None:
    conditions = Conditions(rtt_ms=100, jitter_ms=30, loss=0.1)

    first, second = (Path(conditions, Random("7 up")) for _ in range(2))

    assert [first.arrival(i, 9) for i in range(50)] == [second.arrival(i, 9) for i in range(50)]


@pytest.mark.parametrize(
    ("field", "conditions"),
    [
        ("rtt_ms", {"rtt_ms": -1}),
        ("jitter_ms", {"rtt_ms": 10, "jitter_ms": 11}),
        ("rate_mbit", {"rate_mbit": 0}),
        ("loss", {"loss": 1}),
    ],
)
def test_an_impossible_setting_is_refused_by_name(
    field: str, conditions: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=field):
        Conditions(**conditions)
