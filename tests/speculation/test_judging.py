"""What each judge accepts, and what a Reject holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation import separate as verifier
from picospec.speculation.coupled import Coupled
from picospec.speculation.distributions import Q_SCALE, Distribution, distribution
from picospec.speculation.judge import Judgement, Rejection, Row
from picospec.speculation.messages import Commit, Reject, Sampling
from picospec.speculation.separate import PendingRejection, Separate, as_sent
from tests.speculation.small_models import ALMOST_1, distribution_of, random_distribution


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
