"""What each judge accepts, and what a Reject holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from random import Random
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation import separate as verifier
from speculation.coupled import Coupled
from speculation.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    distribution,
    quantise,
)
from speculation.errors import RemoteProtocolError
from speculation.judge import Judgement, Rejection, Row
from speculation.messages import Commit, Reject, Sampling
from speculation.separate import PendingRejection, Separate, as_sent, recover
from tests.speculation.small_models import (
    ALMOST_1,
    Ends,
    distribution_of,
    pvalue,
    random_distribution,
)


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 3), max_size=6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31),
)
def test_coupled_accepts_drafts_while_they_are_the_targets_own(
    number: int, draft: list[int], seed: int, at: int
) -> None:
    rows = [random_distribution(number + i, 4) for i in range(len(draft) + 1)]
    own = [row.picked(seed, at + i) for i, row in enumerate(rows)]
    right = next((i for i, token in enumerate(draft) if token != own[i]), len(draft))

    judgement = Coupled(seed, at).judge(rows.__getitem__, draft)

    assert judgement.tokens == tuple(own[: right + 1])
    assert (judgement.accepted, judgement.rejection) == (right, None)


def test_no_row_is_computed_after_the_first_rejected_draft_token() -> None:
    seen: list[int] = []

    def row(i: int) -> Distribution:
        seen.append(i)
        return distribution_of(1.0)

    Coupled(1, 1).judge(row, (0, 5, 0, 0))
    separately(row, (0, 5, 0, 0), (Q_SCALE,) * 4, 0.5)

    assert seen == [0, 1, 0, 1]


def separately(row: Row, draft: tuple[int, ...], q: tuple[int, ...], u: float) -> Judgement:
    return Separate(q, (u,) * (len(draft) + 1)).judge(row, draft)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, Q_SCALE), st.floats(0.01, 0.99))
def test_a_draft_token_is_accepted_when_u_is_under_p_over_q(
    u: float, weight: int, p: float
) -> None:
    judged = Separate((weight,), (u, 0.0)).judge(lambda i: distribution_of(p, 1 - p), (0,))

    rounded = float(np.float32(p))
    assert judged.accepted == (u * weight < rounded * Q_SCALE)
    assert (judged.rejection is None) == bool(judged.accepted)


@pytest.mark.parametrize("u", [0.0, 0.5, ALMOST_1])
def test_a_draft_token_that_the_target_cannot_generate_is_never_accepted(u: float) -> None:
    judged = separately(lambda i: distribution_of(1.0, 0.0), (1,), (1,), u)

    assert (judged.tokens, judged.accepted) == ((), 0)
    assert judged.rejection is not None
    assert judged.rejection.token == 1


def test_without_drafts_the_target_draws_from_p() -> None:
    judged = [
        separately(lambda i: distribution_of(0.25, 0.75), (), (), u).tokens[0]
        for u in (0.0, 0.2, 0.3, ALMOST_1)
    ]

    assert judged == [0, 0, 1, 1]


def test_a_token_whose_p_rounds_to_nothing_is_impossible() -> None:
    p = as_sent(Distribution(np.array([4, 5, 6]), np.array([0.5, 1e-60, 0.5])))

    assert (p.tokens.tolist(), p.p.tolist()) == ([4, 6], [0.5, 0.5])


def rejecting(token: int, p: Distribution) -> PendingRejection:
    return PendingRejection(Rejection(token, p), Commit(3, 9, ()))


def sent(p: Distribution, *uniforms: float) -> Reject:
    """What is sent of p with a sample of the tail for each of the uniforms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier, "TAIL_SAMPLES", len(uniforms))
        return rejecting(0, p).message(iter(uniforms))


@given(st.integers(0, 2**32), st.integers(1, 700), st.floats(0.1, 4.0))
@settings(max_examples=60)
def test_a_reject_holds_the_distribution_that_rejected(
    number: int, size: int, spread: float
) -> None:
    p = as_sent(random_distribution(number, size, spread))

    reject = sent(p, 0.1, 0.9, ALMOST_1)

    assert (reject.epoch, reject.position, reject.draw) == (3, 9, 0)
    assert sum(p for _, p in reject.head) + reject.tail_mass == pytest.approx(1.0, abs=1e-6)
    assert len(reject.tail) == (3 if reject.tail_mass else 0)
    assert {t for t, _ in reject.head}.isdisjoint(t for t, _ in reject.tail)
    for token, p_sent in (*reject.head, *reject.tail):
        assert p_sent == p.of(token) == np.float32(p_sent)


def test_a_recovered_token_is_possible_and_not_the_rejected_one() -> None:
    rejection = rejecting(0, distribution_of(0.5, 0.5, 0.0))

    assert [rejection.allows(token) for token in range(4)] == [False, True, False, False]


def test_samples_of_the_tail_have_the_tails_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verifier, "HEAD_TOKENS", 2)
    monkeypatch.setattr(verifier, "HEAD_COVERS", 0.5)
    p = as_sent(distribution_of(0.4, 0.3, 0.15, 0.1, 0.05))
    uniforms = (np.arange(3000) + 0.5) / 3000

    reject = sent(p, *uniforms.tolist())

    counts = np.bincount([token for token, _ in reject.tail], minlength=5)
    np.testing.assert_allclose(counts / 3000, [0, 0, 1 / 2, 1 / 3, 1 / 6], atol=1e-3)
    assert reject.tail_mass == pytest.approx(0.3)
    assert verifier.TAIL_SAMPLES == 8


def test_the_head_is_all_of_a_small_distribution_and_most_of_a_large_one() -> None:
    small = distribution(np.linspace(0, 3, 512).astype(np.float32), Sampling())
    peaked = distribution(np.linspace(0, 400, 5000).astype(np.float32), Sampling())
    flat = distribution(np.linspace(0, 1, 5000).astype(np.float32), Sampling())

    tiny = distribution(np.linspace(0, 40, 5).astype(np.float32), Sampling())
    assert len(verifier.head_of(small)) == 512
    assert verifier.head_of(tiny).tolist() == [4, 3, 2, 1, 0]
    assert peaked.p[verifier.head_of(peaked)].sum() >= verifier.HEAD_COVERS
    assert len(verifier.head_of(peaked)) < verifier.HEAD_TOKENS
    assert flat.tokens[verifier.head_of(flat)].tolist() == list(range(4999, 4487, -1))


# `separate` draws from p: 200,000 tokens through both ends, and wrong controls.
#
# The distribution of a token depends on the one before it, draft tokens come from a q that is
# wrong on purpose, a pass takes any number of them, and the head is so small that the tail
# often decides.


@pytest.fixture
def head_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "HEAD_TOKENS", 3)
    monkeypatch.setattr(verifier, "TAIL_SAMPLES", 1)


@pytest.mark.usefixtures("head_of_three")
def test_what_two_ends_generate_has_the_targets_distribution() -> None:
    found = pvalue([Ends(Random(i)).run() for i in range(200)])

    assert found > 1e-3, found


def test_it_has_not_when_p_is_cut_to_its_top_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PendingRejection.message

    def top_ten(self: PendingRejection, u: Iterator[float]) -> Reject:
        reject = whole(self, u)
        return replace(reject, head=reject.head[:10], tail_mass=0.0)

    monkeypatch.setattr(PendingRejection, "message", top_ten)

    found = pvalue([Ends(Random(i)).run() for i in range(30)])

    assert found < 1e-9, found


@pytest.mark.usefixtures("head_of_three")
def test_it_keeps_the_distribution_when_verifiers_are_lost() -> None:
    ends = [Ends(Random(i), loses=0.3) for i in range(60)]

    found = pvalue([each.run() for each in ends])

    assert sum(each.lost for each in ends) > 10_000
    assert sum(each.pending for each in ends) > 1_000
    assert found > 1e-3, found


@pytest.mark.usefixtures("head_of_three")
def test_it_would_not_if_a_rejected_draft_token_were_judged_anew() -> None:
    found = pvalue([Ends(Random(i), loses=0.3, rejudges=True).run() for i in range(60)])

    assert found < 1e-9, found


# The recovered token: with it the output has the distribution p, by enumeration.

NONE: Final = -1
Shares = Counter[int]


class EndpointRequest(Exception):
    """`recover` wants a uniform beyond those it was given."""


def scripted(values: Sequence[float]) -> Iterator[float]:
    yield from values
    raise EndpointRequest


def shares(answer: Callable[[float], int], low: float = 0.0, high: float = ALMOST_1) -> Shares:
    """Return how much of [low, high) each answer takes. Each must take one interval."""
    if answer(low) == answer(high):
        return Counter({answer(low): high - low})
    if high - low < 1e-9:
        return Counter()
    middle = (low + high) / 2
    return shares(answer, low, middle) + shares(answer, middle, high)


def proposal(reject: Reject, q: QuantisedDistribution) -> Shares:
    """What the first proposal gives, by share of its uniforms; NONE: it is not taken."""

    def answer(*uniforms: float) -> int:
        try:
            token = recover(reject, q, scripted(uniforms))
        except EndpointRequest:
            return NONE
        return NONE if token is None else token

    heads = shares(answer)
    in_tail = heads.pop(NONE, 0.0)
    if in_tail:
        for token_out, share in shares(lambda u: answer(ALMOST_1, u)).items():
            heads[token_out] += in_tail * share
    return heads


def recovered_distribution(
    p: Distribution, rejected: int, q: QuantisedDistribution
) -> dict[int, float]:
    """Enumerate `recover` over its first proposal, given that it is taken: one that is not
    makes all begin anew, so this is the distribution of whatever is drawn in the end."""
    reject = PendingRejection(Rejection(rejected, p), Commit(0, 0, ())).message(iter(()))
    head = {token for token, _ in reject.head}
    tail = [(t, p.of(t)) for t in p.tokens.tolist() if t not in head]
    mass = sum(sent for _, sent in tail)
    drawn: Shares = Counter()
    for sample in tail or [None]:
        sampled = reject if sample is None else dataclasses.replace(reject, tail=(sample,))
        for token_out, share in proposal(sampled, q).items():
            drawn[token_out] += share * (1.0 if sample is None else sample[1] / mass)
    del drawn[NONE]
    return {token: share / sum(drawn.values()) for token, share in drawn.items()}


def output_distribution(
    p: Distribution, q: QuantisedDistribution, residual: Callable[[int], dict[int, float]]
) -> np.ndarray:
    """Compose: each draft token, accepted or recovered."""
    size = int(max(p.tokens.max(), q.tokens.max())) + 1
    out = np.zeros(size)
    for token, weight in zip(q.tokens.tolist(), q.weights.tolist(), strict=True):
        drawn = weight / Q_SCALE
        accepted = min(1.0, p.of(token) / drawn)
        out[token] += drawn * accepted
        if accepted < 1.0:
            for token_out, share in residual(token).items():
                out[token_out] += drawn * (1.0 - accepted) * share
    return out


PAIRS = {
    "drafts near p": (random_distribution(1, 5), random_distribution(2, 5, 0.5)),
    "drafts far from p": (
        distribution_of(0.05, 0.05, 0.2, 0.3, 0.4),
        distribution_of(0.6, 0.3, 0.1),
    ),
    "drafts that p forbids": (
        distribution_of(0, 0, 0.5, 0.3, 0.2),
        distribution_of(0.5, 0.4, 0.1),
    ),
    "drafts in the tail": (
        distribution_of(0.4, 0.3, 0.1, 0.1, 0.1),
        distribution_of(0, 0, 0.5, 0.4, 0.1),
    ),
    "one draft": (distribution_of(0.2, 0.2, 0.6), distribution_of(0.0, 1.0)),
}


@pytest.mark.parametrize(("target", "draft"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("heads", [2, 512])
def test_the_output_distribution_is_p_by_enumeration(
    target: Distribution, draft: Distribution, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "HEAD_TOKENS", heads)
    p, q = as_sent(target), quantise(draft)

    out = output_distribution(p, q, lambda token: recovered_distribution(p, token, q))

    expected = [p.of(token) for token in range(len(out))]
    np.testing.assert_allclose(out, expected, atol=1e-7)


def test_the_output_distribution_is_not_p_when_the_tail_is_dropped() -> None:
    p, q = (
        as_sent(distribution_of(0.3, 0.25, 0.25, 0.2)),
        quantise(distribution_of(0.7, 0.1, 0.1, 0.1)),
    )

    def truncated(token: int) -> dict[int, float]:
        head = Distribution(p.tokens[:2], p.p[:2] / p.p[:2].sum())
        return recovered_distribution(as_sent(head), token, q)

    out = output_distribution(p, q, truncated)

    assert abs(out - p.p).max() > 0.05


HEAD = ((0, 0.5), (1, 0.25))
Q = quantise(distribution_of(0.75, 0.0, 0.25))


def test_the_head_is_drawn_from_its_residual() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((3, 0.25),))

    assert recover(reject, Q, scripted([0.49])) == 1


def test_a_tail_token_that_q_does_not_name_is_taken() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((3, 0.25),))

    assert recover(reject, Q, scripted([0.5, 0.0])) == 3


def test_a_tail_token_likelier_in_q_is_dropped_and_all_is_drawn_again() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((2, 0.2), (3, 0.05)))

    assert recover(reject, Q, scripted([0.9, ALMOST_1, 0.9, 0.0])) == 3
    assert recover(reject, Q, scripted([0.9, ALMOST_1, 0.1])) == 1


def test_a_tail_that_runs_out_is_owed_a_sample() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((2, 0.2),))

    assert recover(reject, Q, scripted([0.9, 0.5, 0.9])) is None

    fresh = dataclasses.replace(reject, tail=((3, 0.05),))
    assert recover(fresh, Q, scripted([0.0]), in_tail=True) == 3


def test_a_reject_where_p_exceeds_q_nowhere_is_not_honest() -> None:
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        recover(Reject(0, 0, 0, ((0, 0.5),), 0.0), Q, repeat(0.5))
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        recover(Reject(0, 0, 0, (), 0.0), Q, repeat(0.5))
