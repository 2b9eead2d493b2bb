"""The verifier's machine on a host whose rows are dear from some number on."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol.messages import Draft, Limits
from picospec.speculation.verifying.latency import measured
from picospec.speculation.verifying.machine import Verdict, VerifyMachine
from tests.speculation.verifiers import V, counting, opening

LIMITS = Limits(max_verify=32, max_ahead=64)
PASSES = 40
"""Fewer than FORGET_AFTER, after which a dear pass is tried again."""


def judged_rows(
    verifier: VerifyMachine, pass_s: Callable[[int], float], arriving: list[int]
) -> list[int]:
    """Return the rows of each pass of a session whose draft tokens are all right. arriving: how
    many are pending at each."""
    request, now, rows = opening(fill="always", max_tokens=9999), 0.0, list[int]()
    verifier.open("a", request, LIMITS, vocabulary_size=V, now=now)
    for pending in arriving:
        start = len(verifier.session("a").committed)
        verifier.received("a", Draft(0, start, 0, (1,) * pending), arrived=now)
        (draft,) = verifier.offer(["a"], now, rows=256).start.values()
        plan, taken = verifier.begin({"a": len(draft)}, now), 1 + len(draft)
        now += pass_s(taken)
        verdict = Verdict(Judgement((*draft, 1), len(draft)))
        verifier.ran(plan, {"a": verdict}, now, rows=taken)
        rows.append(taken)
    return rows


@given(
    st.integers(3, 33),
    st.floats(20.0, 50.0),
    st.lists(st.integers(1, 32), min_size=PASSES, max_size=PASSES),
)
def test_dear_rows_are_met_once_and_never_where_passes_were_timed_before(
    dear_from: int, times: float, arriving: list[int]
) -> None:
    def pass_s(rows: int) -> float:
        return 0.01 * (times if rows >= dear_from else 1.0)

    untimed = VerifyMachine(counting())
    timed = VerifyMachine(counting(), measured(pass_s, LIMITS.max_verify))

    rows = judged_rows(untimed, pass_s, arriving), judged_rows(timed, pass_s, arriving)

    assert sum(taken >= dear_from for taken in rows[0]) <= 1
    assert max(rows[1]) < dear_from
