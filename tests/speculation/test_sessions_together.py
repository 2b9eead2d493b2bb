"""No delivery order, no draft quality and no fault changes the text, or stops it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation import separate as verifier
from picospec.speculation.messages import Limits
from tests.speculation.joined import Joined, joining
from tests.speculation.small_models import STOP, opening, plain

CASES: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(0, 2**32),
    "right": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    "disorder": st.integers(0, 300),
    "max_tokens": st.integers(1, 40),
    "fill": st.sampled_from(["always", "auto", "never"]),
    "others": st.sampled_from([0, 0, 1, 3]),
    "may_fail": st.booleans(),
}


@given(**CASES, seed=st.integers(0, 2**63 - 1), looks_up=st.booleans())
@settings(max_examples=400)
def test_coupled_generates_what_the_target_alone_generates(
    seed: int, disorder: int, max_tokens: int, fill: str, **ends: object
) -> None:
    request = opening(seed=seed, max_tokens=max_tokens, fill=fill)
    joined = joining(request, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    text = plain(joined.target, request)
    assert joined.edge.machine.session.committed == joined.session.committed == text
    assert joined.edge.finish
    assert joined.edge.finish.reason == ("stop" if text[-1] == STOP else "length")
    assert joined.edge.finish.totals == joined.session.totals


@given(**CASES)
@settings(max_examples=400)
def test_separate_ends_with_one_text_at_both_ends(
    disorder: int, max_tokens: int, fill: str, **ends: object
) -> None:
    request = opening(judge="separate", max_tokens=max_tokens, fill=fill)
    joined = joining(request, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    text = joined.edge.machine.session.committed
    assert text == joined.session.committed
    assert len(text) == max_tokens or text[-1] == STOP
    assert STOP not in text[:-1]


def run_with_small_head(joined: Joined, disorder: int) -> None:
    """Let a Reject name the likeliest token only, and one sample of the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier, "HEAD_TOKENS", 1)
        patch.setattr(verifier, "TAIL_SAMPLES", 1)
        patch.setattr(verifier, "MAX_REDRAWS", 10**6)
        joined.run(disorder)


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=200)
def test_a_tail_that_runs_out_is_drawn_again_until_it_does_not(
    number: int, disorder: int
) -> None:
    request = opening(judge="separate", max_tokens=25, stop_tokens=(), fill="never")
    joined = joining(request, number, right=0.0)

    run_with_small_head(joined, disorder)

    assert joined.edge.machine.session.committed == joined.session.committed
    assert len(joined.session.committed) == 25


def test_redraws_do_happen_when_the_head_is_small() -> None:
    request = opening(judge="separate", max_tokens=300, stop_tokens=(), fill="never")
    joined = joining(request, 1, right=0.0)

    run_with_small_head(joined, 0)

    assert joined.edge.redraws > 3


@pytest.mark.parametrize("looks_up", [True, False])
def test_draft_tokens_that_are_always_right_save_passes(looks_up: bool) -> None:
    request = opening(max_tokens=60, stop_tokens=())
    limits = Limits(max_verify=6, max_ahead=20)
    joined = joining(request, 3, right=1.0, looks_up=looks_up, limits=limits)

    joined.run(0)

    totals = joined.session.totals
    assert totals.passes < 45
    assert joined.edge.finish
    assert joined.edge.finish.totals == totals
    if not looks_up:  # what is looked up may be wrong
        assert totals.passes + totals.accepted == 60
        assert totals.judged == totals.accepted


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_a_session_without_any_draft_is_the_target_alone(number: int) -> None:
    request = opening(max_tokens=20)
    joined = joining(request, number)
    joined.edge.machine.stop_drafting()

    joined.run(0)

    assert joined.session.committed == plain(joined.target, request)
    assert joined.session.totals.passes == joined.session.totals.filled
    assert joined.session.totals.filled == len(joined.session.committed)
