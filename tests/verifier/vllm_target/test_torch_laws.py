"""Noise and distributions in torch say what those in numpy say, and cut where vLLM cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.protocol.messages import Sampling
from speculation.sampling import distributions as distributions
from speculation.sampling import noise

torch = pytest.importorskip("torch")

from verifier.vllm_target.worker import noise as torch_noise  # noqa: E402
from verifier.vllm_target.worker import support  # noqa: E402
from verifier.vllm_target.verify_request import Shape  # noqa: E402

SEEDS = st.integers(0, 2**63 - 1)
PLACES = st.integers(0, 2**32 - 1)
SHAPES = st.builds(
    Shape,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    top_k=st.sampled_from([0, 0, 1, 7, 64, 300]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.999]),
)


def sampling(shape: Shape) -> Sampling:
    return Sampling(shape.temperature, shape.min_p, shape.top_k, shape.top_p)


def row(seed: int, size: int = 2000, spread: float = 3.0) -> distributions.Logits:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


@given(SEEDS, PLACES, st.lists(st.integers(0, 2**20), min_size=1, max_size=50))
def test_the_noise_has_the_same_bits_in_torch_and_numpy(
    seed: int, at: int, tokens: list[int]
) -> None:
    words = torch_noise.hashes([seed], [at], torch.tensor([tokens]))

    expected = noise._hash(seed, at, np.array(tokens, np.uint32))
    assert words[0].numpy().view(np.uint32).tolist() == expected.tolist()


@given(SEEDS, PLACES)
def test_the_noise_is_equal_to_the_last_digits_of_float64(seed: int, at: int) -> None:
    tokens = np.arange(500)

    drawn = torch_noise.gumbel([seed], [at], torch.from_numpy(tokens)[None])

    np.testing.assert_allclose(drawn[0].numpy(), noise.gumbel(seed, at, tokens), rtol=1e-12)


@given(st.integers(0, 10**6), SHAPES, SEEDS, PLACES)
@settings(max_examples=200, deadline=None)
def test_a_row_says_the_token_that_the_core_says(
    number: int, shape: Shape, seed: int, at: int
) -> None:
    logits = row(number)

    (said,) = support.say(torch.from_numpy(logits)[None], [shape], [seed], [at])

    assert said == distributions.distribution(logits, sampling(shape)).coupled(seed, at)


@given(st.integers(0, 10**6), SHAPES)
@settings(max_examples=100, deadline=None)
def test_a_row_has_the_law_that_the_core_gives_it(number: int, shape: Shape) -> None:
    logits = row(number)

    found = support.distribution(torch.from_numpy(logits), shape)

    expected = distributions.distribution(logits, sampling(shape))
    assert sorted(found.tokens.tolist()) == sorted(expected.tokens.tolist())
    for token in expected.tokens[:20]:
        assert found.of(int(token)) == pytest.approx(expected.of(int(token)), rel=1e-5)


@given(st.lists(SHAPES, min_size=2, max_size=6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_row_says_the_same_in_any_batch(shapes: list[Shape], number: int) -> None:
    rows = torch.stack([torch.from_numpy(row(number + i)) for i in range(len(shapes))])
    seeds, places = list(range(len(shapes))), list(range(7, 7 + len(shapes)))

    together = support.say(rows, shapes, seeds, places)

    alone = [
        support.say(rows[i : i + 1], [shapes[i]], [seeds[i]], [places[i]])[0]
        for i in range(len(shapes))
    ]
    assert together == alone


@given(st.integers(0, 10**6), SHAPES)
@settings(max_examples=50, deadline=None)
def test_equal_logits_are_ordered_by_token(number: int, shape: Shape) -> None:
    coarse = torch.from_numpy(row(number)).to(torch.bfloat16).to(torch.float32)

    found = support.distribution(coarse, shape)

    kept = set(found.tokens.tolist())
    for token in found.tokens.tolist():
        twins = torch.nonzero(coarse == coarse[token])[:, 0].tolist()
        assert all(twin in kept for twin in twins if twin < token)


def test_a_bias_is_added_before_all_else() -> None:
    logits = torch.zeros(1, 100)
    shape = Shape(temperature=0.0, bias=((42, 5.0), (7, -100.0)))

    assert support.say(logits, [shape], [0], [0]) == [42]
    assert logits.abs().max() == 0.0  # the caller's logits are untouched


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 40, 500])
def test_the_support_is_the_one_vllm_masks_to(top_p: float, top_k: int) -> None:
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    rows = torch.stack([torch.from_numpy(row(i, 5000, spread=1 + i % 4)) for i in range(40)])
    k = torch.full((40,), top_k or 5000, dtype=torch.int32)
    p = torch.full((40,), top_p)

    masked = ops.apply_top_k_top_p_pytorch(rows.clone(), k, p)

    shape = Shape(top_k=top_k, top_p=top_p)
    for i in range(40):
        stock = set(torch.nonzero(masked[i] > -torch.inf)[:, 0].tolist())
        assert set(support.distribution(rows[i], shape).tokens.tolist()) == stock


@given(SEEDS, PLACES)
@settings(deadline=None)
def test_the_coarse_noise_is_near_wherever_it_could_win(seed: int, at: int) -> None:
    tokens = torch.arange(20000)[None]

    near = torch_noise.coarse([seed], [at], tokens).to(torch.float64)

    exact = torch_noise.gumbel([seed], [at], tokens)
    assert torch.isfinite(near).all()
    assert (near - exact)[exact > 0].abs().max() < 5e-6
    assert (near <= 0)[exact < -0.01].all()
