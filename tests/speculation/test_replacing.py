"""What replaces a refused draft: with it the output has the law p, by enumeration."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Final

import numpy as np
import pytest

from speculation import laws
from speculation.errors import RemoteProtocolError, TailExhausted
from speculation.judging import Refusal, as_sent, replace
from speculation.laws import Q_SCALE, DraftLaw, Law, quantise
from speculation.messages import Refuse
from tests.speculation.small_laws import ALMOST_1, law_of, random_law

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


# --- case by case

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
