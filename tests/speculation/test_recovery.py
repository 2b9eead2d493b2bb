"""The recovered token: with it the output has the distribution p, by enumeration."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Final

import numpy as np
import pytest

from picospec.speculation import separate as verifier
from picospec.speculation.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    quantise,
)
from picospec.speculation.judge import Rejection
from picospec.speculation.messages import Commit, Reject, RemoteProtocolError
from picospec.speculation.separate import PendingRejection, as_sent, recover
from tests.speculation.small_models import ALMOST_1, distribution_of, random_distribution

NONE: Final = -1
Shares = Counter[int]


class DoorRequest(Exception):
    """`recover` wants a uniform beyond those it was given."""


def scripted(values: Sequence[float]) -> Iterator[float]:
    yield from values
    raise DoorRequest


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
        except DoorRequest:
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
