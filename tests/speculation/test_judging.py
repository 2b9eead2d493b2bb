"""Both judges are exact: by definition in `coupled`, by enumeration in `separate`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation import judging, laws
from speculation.errors import RemoteProtocolError, TailExhausted
from speculation.judging import Refusal, as_sent, judge_coupled, judge_separate, replace
from speculation.laws import Q_SCALE, DraftLaw, Law, law, quantise
from speculation.messages import Refuse, Sampling

ALMOST_1 = 1 - 2**-53


def law_of(*p: float) -> Law:
    kept = np.flatnonzero(p)
    return Law(kept, np.array(p)[kept] / np.sum(p))


def random_law(seed: int, size: int, spread: float = 1.5) -> Law:
    values = np.random.default_rng(seed).normal(0, spread, size)
    return law(values.astype(np.float32), Sampling())


@pytest.fixture
def tiny_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of two tokens, so that small vocabularies have a tail."""
    monkeypatch.setattr(laws, "HEAD_TOKENS", 2)
    monkeypatch.setattr(laws, "HEAD_COVERS", 0.5)


# --- coupled


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 3), max_size=6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31),
)
def test_coupled_accepts_drafts_while_they_are_the_targets_own(
    number: int, draft: list[int], seed: int, at: int
) -> None:
    rows = [random_law(number + i, 4) for i in range(len(draft) + 1)]
    own = [row.coupled(seed, at + i) for i, row in enumerate(rows)]
    right = next((i for i, token in enumerate(draft) if token != own[i]), len(draft))

    judgement = judge_coupled(rows.__getitem__, draft, seed, at)

    assert judgement.tokens == tuple(own[: right + 1])
    assert (judgement.accepted, judgement.refusal) == (right, None)


def test_no_row_is_looked_at_after_the_first_draft_that_falls() -> None:
    seen: list[int] = []

    def row(i: int) -> Law:
        seen.append(i)
        return law_of(1.0)

    judge_coupled(row, (0, 5, 0, 0), 1, 1)
    judge_separate(row, (0, 5, 0, 0), (Q_SCALE,) * 4, repeat(0.5))

    assert seen == [0, 1, 0, 1]


# --- separate: acceptance


@given(st.floats(0, 1, exclude_max=True), st.integers(1, Q_SCALE), st.floats(0.01, 0.99))
def test_a_draft_stands_when_u_is_under_p_over_q(u: float, weight: int, p: float) -> None:
    said = judge_separate(lambda i: law_of(p, 1 - p), (0,), (weight,), chain([u], repeat(0.0)))

    rounded = float(np.float32(p))
    assert said.accepted == (u * weight < rounded * Q_SCALE)
    assert (said.refusal is None) == bool(said.accepted)


@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_1])
def test_a_draft_that_the_target_cannot_say_never_stands(u: float) -> None:
    said = judge_separate(lambda i: law_of(1.0, 0.0), (1,), (1,), repeat(u))

    assert (said.tokens, said.accepted) == ((), 0)
    assert said.refusal is not None
    assert said.refusal.token == 1


@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_1])
def test_a_draft_less_likely_than_the_targets_always_stands(u: float) -> None:
    said = judge_separate(lambda i: law_of(0.5, 0.5), (1,), (Q_SCALE // 2,), repeat(u))

    assert said.accepted == 1
    assert len(said.tokens) == 2


def test_without_drafts_the_target_draws_from_p() -> None:
    said = [
        judge_separate(lambda i: law_of(0.25, 0.75), (), (), repeat(u)).tokens[0]
        for u in (0.0, 0.2, 0.3, ALMOST_1)
    ]

    assert said == [0, 0, 1, 1]


# --- separate: the refusal


@given(st.integers(0, 2**32), st.integers(1, 700), st.floats(0.1, 4.0))
@settings(max_examples=60, deadline=None)
def test_a_refuse_holds_the_law_that_refused(number: int, size: int, spread: float) -> None:
    p = as_sent(random_law(number, size, spread))

    refuse = Refusal(0, p).message(3, 9, [0.1, 0.9, ALMOST_1])

    assert (refuse.epoch, refuse.position) == (3, 9)
    assert sum(p for _, p in refuse.head) + refuse.tail_mass == pytest.approx(1.0, abs=1e-6)
    assert len(refuse.tail) == (3 if refuse.tail_mass else 0)
    assert {t for t, _ in refuse.head}.isdisjoint(t for t, _ in refuse.tail)
    for token, sent in (*refuse.head, *refuse.tail):
        assert sent == p.of(token) == np.float32(sent)


def test_a_replacement_is_possible_and_not_the_refused_token() -> None:
    refusal = Refusal(0, law_of(0.5, 0.5, 0.0))

    assert [refusal.allows(token) for token in range(4)] == [False, True, False, False]


# --- separate: the output has the law p


NONE: Final = -1
Shares = Counter[int]


class Asked(Exception):
    """`replace` wants a uniform beyond those it was given."""


def scripted(values: Sequence[float]) -> Iterator[float]:
    """An iterator that does not end quietly."""
    return chain(values, map(_asked, repeat(0)))


def _asked(_: int) -> float:
    raise Asked


def shares(say: Callable[[float], int], low: float = 0.0, high: float = ALMOST_1) -> Shares:
    """Return how much of [low, high) each answer takes. Each must take one interval."""
    if say(low) == say(high):
        return Counter({say(low): high - low})
    if high - low < 1e-9:
        return Counter()
    middle = (low + high) / 2
    return shares(say, low, middle) + shares(say, middle, high)


def proposal(refuse: Refuse, q: DraftLaw) -> Shares:
    """What the first proposal says, by share of its uniforms; NONE: it falls."""

    def say(*uniforms: float) -> int:
        try:
            return replace(refuse, q, scripted(uniforms))
        except Asked:
            return NONE

    heads = shares(say)
    in_tail = heads.pop(NONE, 0.0)
    if in_tail:
        for said, share in shares(lambda u: say(ALMOST_1, u)).items():
            heads[said] += in_tail * share
    return heads


def replacement_law(p: Law, refused: int, q: DraftLaw) -> dict[int, float]:
    """Enumerate `replace` over its first proposal, given that it stands: one that falls makes
    all begin anew, so this is the law of whatever is drawn in the end."""
    refuse = Refusal(refused, p).message(0, 0, [])
    head = {token for token, _ in refuse.head}
    tail = [(t, p.of(t)) for t in p.tokens.tolist() if t not in head]
    mass = sum(sent for _, sent in tail)
    drawn: Shares = Counter()
    for sample in tail or [None]:
        sampled = refuse if sample is None else dataclasses.replace(refuse, tail=(sample,))
        for said, share in proposal(sampled, q).items():
            drawn[said] += share * (1.0 if sample is None else sample[1] / mass)
    del drawn[NONE]
    return {token: share / sum(drawn.values()) for token, share in drawn.items()}


def output_law(p: Law, q: DraftLaw, residual: Callable[[int], dict[int, float]]) -> np.ndarray:
    """Compose: each drafted token times its fate."""
    size = int(max(p.tokens.max(), q.tokens.max())) + 1
    out = np.zeros(size)
    for token, weight in zip(q.tokens.tolist(), q.weights.tolist(), strict=True):
        drawn = weight / Q_SCALE
        stands = min(1.0, p.of(token) / drawn)
        out[token] += drawn * stands
        if stands < 1.0:
            for said, share in residual(token).items():
                out[said] += drawn * (1.0 - stands) * share
    return out


PAIRS = {
    "drafts near p": (random_law(1, 5), random_law(2, 5, 0.5)),
    "drafts far from p": (law_of(0.05, 0.05, 0.2, 0.3, 0.4), law_of(0.6, 0.3, 0.1)),
    "drafts that p forbids": (law_of(0, 0, 0.5, 0.3, 0.2), law_of(0.5, 0.4, 0.1)),
    "drafts in the tail": (law_of(0.4, 0.3, 0.1, 0.1, 0.1), law_of(0, 0, 0.5, 0.4, 0.1)),
    "one draft": (law_of(0.2, 0.2, 0.6), law_of(0.0, 1.0)),
}


@pytest.mark.parametrize(("target", "draft"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("heads", [2, 512])
def test_the_output_law_is_p_by_enumeration(
    target: Law, draft: Law, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laws, "HEAD_TOKENS", heads)
    p, q = as_sent(target), quantise(draft)

    out = output_law(p, q, lambda token: replacement_law(p, token, q))

    expected = [p.of(token) for token in range(len(out))]
    np.testing.assert_allclose(out, expected, atol=1e-7)


def test_the_output_law_is_not_p_when_the_tail_is_dropped() -> None:
    p, q = as_sent(law_of(0.3, 0.25, 0.25, 0.2)), quantise(law_of(0.7, 0.1, 0.1, 0.1))

    def truncated(token: int) -> dict[int, float]:
        head = Law(p.tokens[:2], p.p[:2] / p.p[:2].sum())
        return replacement_law(as_sent(head), token, q)

    out = output_law(p, q, truncated)

    assert abs(out - p.p).max() > 0.05


# --- separate: the replacement, case by case

HEAD = ((0, 0.5), (1, 0.25))
Q = quantise(law_of(0.75, 0.0, 0.25))


def test_the_head_is_drawn_from_its_residual() -> None:
    refuse = Refuse(0, 0, HEAD, 0.25, ((3, 0.25),))

    assert replace(refuse, Q, scripted([0.49])) == 1


def test_a_tail_token_that_q_does_not_name_stands() -> None:
    refuse = Refuse(0, 0, HEAD, 0.25, ((3, 0.25),))

    assert replace(refuse, Q, scripted([0.5, 0.0])) == 3


def test_a_tail_token_less_likely_than_its_draft_falls_and_all_is_drawn_again() -> None:
    refuse = Refuse(0, 0, HEAD, 0.25, ((2, 0.2), (3, 0.05)))

    assert replace(refuse, Q, scripted([0.9, ALMOST_1, 0.9, 0.0])) == 3
    assert replace(refuse, Q, scripted([0.9, ALMOST_1, 0.1])) == 1


def test_a_tail_that_runs_out_is_owed_a_sample() -> None:
    refuse = Refuse(0, 0, HEAD, 0.25, ((2, 0.2),))

    with pytest.raises(TailExhausted):
        replace(refuse, Q, scripted([0.9, 0.5, 0.9]))

    fresh = dataclasses.replace(refuse, tail=((3, 0.05),))
    assert replace(fresh, Q, scripted([0.0]), tail_owed=True) == 3


def test_a_refuse_where_p_exceeds_q_nowhere_is_not_honest() -> None:
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        replace(Refuse(0, 0, ((0, 0.5),), 0.0), Q, repeat(0.5))
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        replace(Refuse(0, 0, (), 0.0), Q, repeat(0.5))


@pytest.mark.usefixtures("tiny_head")
def test_samples_of_the_tail_have_the_tails_law() -> None:
    p = as_sent(law_of(0.4, 0.3, 0.15, 0.1, 0.05))
    uniforms = (np.arange(3000) + 0.5) / 3000

    refuse = Refusal(0, p).message(0, 0, uniforms.tolist())

    counts = np.bincount([token for token, _ in refuse.tail], minlength=5)
    np.testing.assert_allclose(counts / 3000, [0, 0, 1 / 2, 1 / 3, 1 / 6], atol=1e-3)
    assert refuse.tail_mass == pytest.approx(0.3)
    assert judging.TAIL_SAMPLES == 8
