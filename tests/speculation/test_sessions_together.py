"""No delivery order, no draft quality and no fault changes the text, or stops it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.protocol.messages import Limits
from speculation.sampling import distributions as distributions
from speculation.sampling import judging
from speculation.verifying import session as verifying
from tests.speculation.joined import Joined, model, opening, plain

RATES = st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0])
CASES = {
    "number": st.integers(0, 2**32),
    "right": RATES,
    "disorder": st.integers(0, 300),
    "max_tokens": st.integers(1, 30),
    "fill": st.sampled_from(["always", "auto", "never"]),
}


@given(**CASES, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=400, deadline=None)
def test_coupled_says_what_the_target_alone_says(
    number: int, right: float, disorder: int, max_tokens: int, fill: str, seed: int
) -> None:
    request = opening(seed=seed, max_tokens=max_tokens, fill=fill)
    joined = Joined(request, model(number), model(number + 1), Random(number), right)

    joined.run(disorder)

    text = plain(joined.target, request)
    assert joined.edge.committed == joined.verifier.committed == text
    assert joined.finish
    assert joined.finish.reason == ("stop" if text[-1] == 6 else "length")


@given(**CASES)
@settings(max_examples=400, deadline=None)
def test_separate_ends_with_one_text_at_both_ends(
    number: int, right: float, disorder: int, max_tokens: int, fill: str
) -> None:
    request = opening(judge="separate", max_tokens=max_tokens, fill=fill)
    joined = Joined(request, model(number), model(number + 1), Random(number), right)

    joined.run(disorder)

    text = joined.edge.committed
    assert text == joined.verifier.committed
    assert len(text) == max_tokens or text[-1] == 6
    assert 6 not in text[:-1]


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_a_tail_that_runs_out_is_drawn_again_until_it_does_not(
    number: int, disorder: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributions, "HEAD_TOKENS", 1)
        patch.setattr(verifying, "TAIL_SAMPLES", 1)
        request = opening(judge="separate", max_tokens=25, stop_tokens=())
        joined = Joined(request, model(number), model(number + 1), Random(number), 0.0)

        joined.run(disorder)

    assert joined.edge.committed == joined.verifier.committed
    assert len(joined.edge.committed) == 25


def test_redraws_do_happen_when_the_head_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "HEAD_TOKENS", 1)
    monkeypatch.setattr(verifying, "TAIL_SAMPLES", 1)
    request = opening(judge="separate", max_tokens=300, stop_tokens=())
    joined = Joined(request, model(1), model(2), Random(1), 0.0)

    joined.run(0)

    assert joined.redraws > 3


def test_drafts_that_are_always_right_save_passes() -> None:
    request = opening(max_tokens=60, stop_tokens=())
    joined = Joined(
        request, model(3), model(4), Random(0), 1.0, Limits(max_verify=6, max_ahead=20)
    )

    joined.run(600)

    totals = joined.verifier.totals
    assert totals.accepted > 0
    assert totals.passes + totals.accepted == 60
    assert joined.finish
    assert joined.finish.totals == totals


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_session_without_any_draft_is_the_target_alone(number: int) -> None:
    request = opening(max_tokens=20)
    joined = Joined(request, model(number), model(number), Random(number))

    while not joined.verifier.finished:
        joined.begin()
        joined.resolve()
    while not joined.finish:
        joined.hear()

    assert joined.edge.committed == plain(joined.target, request)


def test_the_samples_of_a_refuse_seen_twice_are_not_tried_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert judging.TAIL_SAMPLES == verifying.TAIL_SAMPLES
    monkeypatch.setattr(distributions, "HEAD_TOKENS", 1)
    monkeypatch.setattr(verifying, "TAIL_SAMPLES", 1)
    request = opening(judge="separate", max_tokens=300, stop_tokens=())
    joined = Joined(request, model(1), model(2), Random(1), 0.0)
    for _ in range(1000):
        joined.turn()
        if joined.redraws:
            break
    reject, redraw = joined.said[joined.heard - 1], joined.up[-1]

    for _ in range(50):  # with chance on its side, a second try would soon stand
        assert joined.edge.rejected(reject, joined._u) == redraw
