"""How a guess is drawn from logits."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent import guessing
from speculation.laws import Q_SCALE, law
from speculation.messages import Sampling
from speculation.noise import place

LOGITS = np.random.default_rng(5).normal(0, 6, 500).astype(np.float32)


def test_a_coupled_guess_is_the_one_a_target_with_these_logits_would_say() -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9)
    pick = guessing.coupled(sampling, seed=7, prompt_tokens=3)

    for position in range(50):
        target = law(LOGITS, sampling).coupled(7, place(3, position))
        assert pick(LOGITS, position).token == target


def test_a_greedy_guess_is_the_likeliest_and_as_sure_as_the_draft_model() -> None:
    guess = guessing.coupled(Sampling(temperature=0.0), 7, 3)(LOGITS, 0)

    exact = np.exp(LOGITS - LOGITS.max())
    assert guess.token == int(np.argmax(LOGITS))
    assert guess.confidence == pytest.approx(exact.max() / exact.sum(), rel=0.02)


def test_a_separate_guess_comes_from_the_law_that_it_names() -> None:
    chance = np.random.default_rng(2)
    pick = guessing.separate(Sampling(temperature=1.0), chance.random)

    guesses = [pick(LOGITS, 0) for _ in range(4000)]

    q = guesses[0].q
    assert q is not None
    assert len(q.tokens) <= guessing.SEPARATE_TOKENS
    likeliest = int(q.tokens[np.argmax(q.weights)])
    share = sum(guess.token == likeliest for guess in guesses) / len(guesses)
    assert share == pytest.approx(q.of(likeliest) / Q_SCALE, abs=0.04)
    assert all(g.confidence == pytest.approx(q.of(g.token) / Q_SCALE) for g in guesses)
