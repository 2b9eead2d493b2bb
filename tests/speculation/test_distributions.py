"""Distributions made without sorting V are the distributions that a full sort gives."""

from __future__ import annotations

import struct
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speculation import coupled, noise
from speculation import distributions as distributions
from speculation import separate as separate
from speculation.distributions import (
    Q_SCALE,
    Distribution,
    distribution,
    quantise,
    top,
)
from speculation.messages import Sampling
from speculation.noise import noise_index

SIZES = st.sampled_from([1, 2, 63, 64, 65, 500, 1000, 4099])
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([1e-4, 0.01, 0.3, 1.0, 1.7, 100.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.03, 0.5, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 64, 700, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.4, 1e-9]),
)


@st.composite
def logits(draw: st.DrawFn) -> np.ndarray:
    """float32[V]: normal, perhaps so coarse that many are equal, perhaps masked by -inf."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, spread = draw(SIZES), draw(st.sampled_from([0.01, 1.0, 5.0, 40.0]))
    values = chance.normal(0, spread, size).astype(np.float32)
    if coarse := draw(st.sampled_from([0.0, 0.0, 0.5, 4.0])):
        values = (values / coarse).round().astype(np.float32) * np.float32(coarse)
    if draw(st.booleans()):
        values[1:][chance.random(size - 1) < 0.3] = -np.inf
    return values


def reference(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """The definition: sort all, then temperature, min-p, top-k, top-p in this order."""
    scaled = (logits / np.float32(sampling.temperature)).astype(np.float64)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = {token: float(np.exp(scaled[token] - scaled[order[0]])) for token in order}
    kept = [token for token in order if weights[token] >= sampling.min_p * weights[order[0]]]
    kept = kept[: sampling.top_k or None]
    wanted = sampling.top_p * sum(weights[token] for token in kept)
    prefix, total = [], 0.0
    for token in kept:
        prefix.append(token)
        total += weights[token]
        if sampling.top_p < 1.0 and total >= wanted:
            break
    return {token: weights[token] / total for token in prefix}


@given(logits(), SAMPLINGS)
@settings(max_examples=400)
def test_a_distribution_is_what_a_full_sort_gives(
    values: np.ndarray, sampling: Sampling
) -> None:
    found = distribution(values, sampling)

    expected = reference(values, sampling)
    given_p = dict(zip(found.tokens.tolist(), found.p.tolist(), strict=True))
    for token in expected.keys() | given_p.keys():
        assert given_p.get(token, 0.0) == pytest.approx(
            expected.get(token, 0.0), rel=2e-5, abs=1e-30
        )


@given(logits(), SAMPLINGS, st.none() | st.integers(1, 80))
@settings(max_examples=200)
def test_every_token_of_a_distribution_is_possible_and_named_once(
    values: np.ndarray, sampling: Sampling, most: int | None
) -> None:
    found = distribution(values, sampling, most=most)

    assert (found.p > 0.0).all()
    assert np.isfinite(values[found.tokens]).all()
    assert found.p.sum() == pytest.approx(1.0)
    assert len(set(found.tokens.tolist())) == len(found.tokens) <= (most or len(values))


@pytest.mark.parametrize("temperature", [0.0, 9e-6])
def test_at_temperature_zero_the_distribution_is_the_argmax(temperature: float) -> None:
    found = distribution(np.array([1, 3, 3, 2], np.float32), Sampling(temperature=temperature))

    assert (found.tokens.tolist(), found.p.tolist()) == ([1], [1.0])


@given(logits(), st.integers(1, 200))
@settings(max_examples=300)
def test_top_is_a_full_sort_lower_tokens_first(values: np.ndarray, count: int) -> None:
    found = top(values, min(count, len(values)))

    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    assert found.tolist() == order[:count]


def test_top_of_equal_values_is_the_lowest_tokens() -> None:
    assert top(np.zeros(100_003, np.float32), 3).tolist() == [0, 1, 2]


def test_a_wide_nucleus_is_found_as_well() -> None:
    flat = np.zeros(30_000, np.float32)

    assert len(distribution(flat, Sampling(top_p=0.5)).tokens) == 15_000


@given(logits(), st.integers(0, 2**63 - 1), st.integers(0, 2**31))
@settings(max_examples=100)
def test_the_coupled_token_is_the_argmax_over_all_tokens(
    values: np.ndarray, seed: int, at: int
) -> None:
    picked = distribution(values, Sampling()).picked(seed, at)

    added = noise.gumbel(seed, at, np.arange(len(values)))
    assert (values + added)[picked] == pytest.approx((values + added).max(), abs=1e-5)


@given(st.floats(0, 1, exclude_max=True))
def test_a_quantile_is_the_first_token_whose_sum_exceeds_it(u: float) -> None:
    p = Distribution(np.array([7, 3, 9]), np.array([0.25, 0.5, 0.25]))

    assert p.at(u) == (7 if u < 0.25 else 3 if u < 0.75 else 9)


@given(logits(), SAMPLINGS)
@settings(max_examples=200)
def test_weights_sum_to_the_scale_and_nothing_impossible_has_one(
    values: np.ndarray, sampling: Sampling
) -> None:
    exact = distribution(values, sampling)

    rounded = quantise(exact)

    assert rounded.weights.sum() == Q_SCALE
    assert (rounded.weights > 0).all()
    assert np.isfinite(values[rounded.tokens]).all()
    for token, weight in zip(rounded.tokens.tolist(), rounded.weights.tolist(), strict=True):
        assert abs(weight - exact.of(token) * Q_SCALE) < 1.0


@given(st.floats(0, 1, exclude_max=True))
def test_a_drafted_token_has_a_weight(u: float) -> None:
    q = quantise(distribution(np.linspace(0, 20, 300).astype(np.float32), Sampling()))

    assert q.of(q.at(u)) > 0


# The shared noise: fixed for all time, equal to murmur3, and Gumbel.


def murmur3_x86_32(data: bytes, seed: int) -> int:
    """The published algorithm, word by word, for whole words."""

    def rotate(word: int, bits: int) -> int:
        return (word << bits | word >> 32 - bits) & 0xFFFFFFFF

    h = seed
    for (word,) in struct.iter_unpack("<I", data):
        word = rotate(word * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
        h = rotate(h ^ word, 13) * 5 + 0xE6546B64 & 0xFFFFFFFF
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def hash_of(seed: int, at: int, token: int) -> int:
    words = (seed & 0xFFFFFFFF, seed >> 32, at & 0xFFFFFFFF, token)
    return murmur3_x86_32(struct.pack("<4I", *words), 0)


def test_the_slow_hash_is_murmur3() -> None:
    assert murmur3_x86_32(b"test", 0) == 0xBA6BD213  # the vectors of the public test suites
    assert murmur3_x86_32(b"\xff\xff\xff\xff", 0) == 0x76293B50
    assert murmur3_x86_32(b"\x21\x43\x65\x87", 0x5082EDEE) == 0x2362F9DE


@given(
    st.integers(0, 2**64 - 1),
    st.integers(-1, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
)
def test_the_hash_is_murmur3_over_seed_place_and_each_token_alone(
    seed: int, at: int, tokens: list[int]
) -> None:
    drawn = noise.gumbel(seed, at, np.array(tokens, np.int64))

    u = (np.array([hash_of(seed, at, token) for token in tokens]) + 0.5) / 2**32
    assert drawn == pytest.approx(-np.log(-np.log1p(-u)), rel=1e-14, abs=1e-14)


def test_the_first_output_token_is_drawn_at_the_last_prompt_token() -> None:
    assert noise.noise_index(7, 0) == 6
    assert noise.noise_index(7, 3) == 9


def test_the_noise_is_gumbel_over_tokens() -> None:
    drawn = noise.gumbel(2**40 + 5, 11, np.arange(150_000))

    assert stats.kstest(drawn, "gumbel_r").pvalue > 1e-3
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert drawn.var() == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_the_noise_is_gumbel_over_places_for_every_seed() -> None:
    tokens = np.array([5, 300, 70_000])
    drawn = np.array(
        [[noise.gumbel(seed, at, tokens) for at in range(500)] for seed in range(20)]
    )

    each = stats.kstest(drawn, "gumbel_r", axis=1).pvalue
    assert stats.kstest(each.ravel(), "uniform").pvalue > 1e-3


def test_neighbouring_places_and_tokens_are_not_correlated() -> None:
    drawn = np.array([noise.gumbel(3, at, np.arange(300)) for at in range(300)])
    drawn -= drawn.mean()

    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        assert abs((one * other).mean() / drawn.var()) < 0.02


def pvalue(temperature: float) -> float:
    """Test how often each token wins argmax(logits / temperature + noise) against p at 1."""
    logits, tokens = np.array([1.0, 0.5, 0.0, -0.5, -1.0, -2.0]), np.arange(6)
    wins = [
        np.argmax(logits / temperature + noise.gumbel(99, at, tokens)) for at in range(20_000)
    ]
    p = np.exp(logits) / np.exp(logits).sum()
    return float(stats.chisquare(np.bincount(wins, minlength=6), p * 20_000).pvalue)


def test_the_argmax_under_noise_draws_from_p_and_at_another_temperature_it_does_not() -> None:
    assert pvalue(1.0) > 1e-3
    assert pvalue(1.1) < 1e-6


# How a draft token is drawn from logits.

LOGITS = np.random.default_rng(5).normal(0, 6, 500).astype(np.float32)


def agreement(seed: int) -> float:
    """Share of positions at which a target with these logits and seed 7 picks the same."""
    sampling = Sampling(temperature=0.8, top_p=0.9)
    pick = coupled.sampler(sampling, seed=seed, prompt_tokens=3)
    target = distribution(LOGITS, sampling)

    positions = range(200)
    same = [pick(LOGITS, at).token == target.picked(7, noise_index(3, at)) for at in positions]
    return sum(same) / len(positions)


def test_a_coupled_draft_token_is_mostly_what_a_target_of_its_seed_alone_picks() -> None:
    assert agreement(seed=7) > 0.85
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
