"""How a draft token is drawn from logits."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest

from picospec.speculation import coupled
from picospec.speculation import separate as separate
from picospec.speculation.distributions import Q_SCALE, distribution, noise_index
from picospec.speculation.messages import Sampling

LOGITS = np.random.default_rng(5).normal(0, 6, 500).astype(np.float32)


def agreement(seed: int) -> float:
    """Share of positions at which a target with these logits and seed 7 picks the same."""
    sampling = Sampling(temperature=0.8, top_p=0.9)
    pick = coupled.sampler(sampling, seed=seed, prompt_tokens=3)
    target = distribution(LOGITS, sampling)

    positions = range(200)
    same = [pick(LOGITS, at).token == target.picked(7, noise_index(3, at)) for at in positions]
    return sum(same) / len(positions)


def test_a_coupled_draft_token_is_mostly_what_a_target_with_these_logits_picks() -> None:
    assert agreement(seed=7) > 0.85


def test_a_coupled_draft_token_with_another_seed_is_mostly_not() -> None:
    assert agreement(seed=8) < 0.65


def test_the_larger_the_lead_the_higher_the_confidence() -> None:
    pick = coupled.sampler(Sampling(), seed=7, prompt_tokens=3)
    flat, peaked = np.zeros(500, np.float32), np.zeros(500, np.float32)
    peaked[11] = 30.0

    assert pick(flat, 0).confidence < 0.5 < pick(peaked, 0).confidence < 1.0


def test_a_greedy_draft_token_is_the_likeliest_and_as_sure_as_the_draft_model() -> None:
    drafted = coupled.sampler(Sampling(temperature=0.0), 7, 3)(LOGITS, 0)

    exact = np.exp(LOGITS - LOGITS.max())
    assert drafted.token == int(np.argmax(LOGITS))
    assert drafted.confidence == pytest.approx(exact.max() / exact.sum(), rel=0.02)


def test_a_separate_draft_token_comes_from_the_distribution_that_it_names() -> None:
    chance = np.random.default_rng(2)
    pick = separate.sampler(Sampling(temperature=1.0), iter(chance.random, 2.0))

    drafted = [pick(LOGITS, 0) for _ in range(4000)]

    q = drafted[0].q
    assert q is not None
    assert len(q.tokens) <= separate.CANDIDATES
    likeliest = int(q.tokens[np.argmax(q.weights)])
    share = sum(each.token == likeliest for each in drafted) / len(drafted)
    assert share == pytest.approx(q.of(likeliest) / Q_SCALE, abs=0.04)
    assert all(g.confidence == pytest.approx(q.of(g.token) / Q_SCALE) for g in drafted)


@pytest.mark.parametrize("make", ["coupled", "separate"])
def test_a_token_without_rivals_is_about_as_sure_as_the_draft_model(make: str) -> None:
    only = Sampling(top_k=1)
    if make == "coupled":
        pick = coupled.sampler(only, 7, 3)
    else:
        pick = separate.sampler(Sampling(temperature=0.0), repeat(0.5))
    surer = np.array([0.0, 6.0, 0.0], np.float32)
    less_sure = np.array([0.0, 1.0, 0.0], np.float32)

    drafted = [pick(logits, 0) for logits in (surer, less_sure)]

    assert [each.token for each in drafted] == [1, 1]
    assert 0.98 < drafted[0].confidence < 1.0
    assert 0.4 < drafted[1].confidence < 0.7


def test_a_greedy_separate_draft_token_has_all_the_weight() -> None:
    drafted = separate.sampler(Sampling(temperature=0.0), repeat(0.9))(LOGITS, 0)

    assert drafted.q is not None
    assert (drafted.q.tokens.tolist(), drafted.q.weights.tolist()) == (
        [int(np.argmax(LOGITS))],
        [Q_SCALE],
    )
