"""Distributions made without sorting V are the distributions that a full sort gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation import distributions as distributions
from picospec.speculation.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    distribution,
    quantise,
    top,
)
from picospec.speculation.messages import Sampling

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

    noise = distributions.gumbel(seed, at, np.arange(len(values)))
    assert (values + noise)[picked] == pytest.approx((values + noise).max(), abs=1e-5)


@given(st.floats(0, 1, exclude_max=True))
def test_a_quantile_is_the_first_token_whose_sum_exceeds_it(u: float) -> None:
    p = Distribution(np.array([7, 3, 9]), np.array([0.25, 0.5, 0.25]))

    assert p.at(u) == (7 if u < 0.25 else 3 if u < 0.75 else 9)


def test_a_token_outside_a_distribution_has_no_probability() -> None:
    assert Distribution(np.array([7]), np.array([1.0])).of(8) == 0.0
    assert QuantisedDistribution(np.array([7]), np.array([Q_SCALE])).of(8) == 0


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
