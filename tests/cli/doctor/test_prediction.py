"""The predicted speed-up behaves as speculation does, and agrees with the simulator."""

from __future__ import annotations

from math import exp, log

from hypothesis import given
from hypothesis import strategies as st

from picospec.cli.doctor.prediction import ACCEPTANCE, speed_up

RTTS_MS = (2, 10, 20, 50, 100, 200, 300)
SIMULATED = {
    (72, 24): (2.80, 2.74, 2.70, 2.51, 2.34, 2.11, 1.90),
    (146, 43): (3.00, 2.98, 2.94, 2.83, 2.65, 2.48, 2.29),
    (10, 5): (2.16, 2.00, 1.90, 1.68, 1.42, 1.22, 1.14),
    (10, 10): (1.48, 1.39, 1.44, 1.37, 1.33, 1.20, 1.13),
}
"""Rows `picospec` of docs/performance.md, at temperature 0, by target/draft in milliseconds."""

seconds = st.floats(1e-3, 1.0)
accepted = st.floats(0.1, 0.999)


def mean(pass_ms: float, draft_ms: float, rtt_ms: float) -> float:
    """The geometric mean over the kinds of text, as in that table."""
    times = {"pass_s": pass_ms / 1e3, "draft_s": draft_ms / 1e3, "rtt_s": rtt_ms / 1e3}
    gains = [speed_up(acceptance, **times) for acceptance in ACCEPTANCE.values()]
    return exp(sum(map(log, gains)) / len(gains))


def test_it_is_near_the_simulated_speed_ups_and_not_above_them() -> None:
    ratios = [
        mean(*point, rtt_ms) / simulated
        for point, row in SIMULATED.items()
        for rtt_ms, simulated in zip(RTTS_MS, row, strict=True)
    ]

    assert max(ratios) <= 1.0
    assert exp(sum(map(log, ratios)) / len(ratios)) > 0.8


@given(accepted, seconds, seconds, seconds)
def test_drafts_never_make_an_answer_slower(a: float, p: float, d: float, r: float) -> None:
    assert speed_up(a, pass_s=p, draft_s=d, rtt_s=r) >= 1 - 1e-9


@given(accepted, seconds, seconds, seconds, st.floats(1.01, 10))
def test_distance_and_slow_drafts_cost_and_acceptance_pays(
    a: float, p: float, d: float, r: float, more: float
) -> None:
    here = speed_up(a, pass_s=p, draft_s=d, rtt_s=r)

    assert speed_up(a, pass_s=p, draft_s=d, rtt_s=r * more) <= here + 1e-9
    assert speed_up(a, pass_s=p, draft_s=d * more, rtt_s=r) <= here + 1e-9
    assert speed_up(a / more, pass_s=p, draft_s=d, rtt_s=r) <= here + 1e-9
