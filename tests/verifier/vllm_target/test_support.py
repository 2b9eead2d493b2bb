"""Noise and distributions in torch equal those in numpy, and are cut where vLLM cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation.protocol.messages import Sampling
from picospec.speculation.sampling import distributions, noise

torch = pytest.importorskip("torch")

from picospec.verifier.vllm_target.verify_request import VerifyRequest  # noqa: E402
from picospec.verifier.vllm_target.worker import noise as torch_noise  # noqa: E402
from picospec.verifier.vllm_target.worker.judging import judge  # noqa: E402
from picospec.verifier.vllm_target.worker.rows import Columns, Look  # noqa: E402

SEEDS = st.integers(0, 2**64 - 1)
PLACES = st.integers(0, 2**32 - 1)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    top_k=st.sampled_from([0, 0, 1, 7, 64, 300]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.999]),
)


class Logits:
    """Rows of a step, one for each request."""

    def __init__(self, *rows: torch.Tensor) -> None:
        self.rows = rows
        self.vocabulary_size = len(rows[0])

    def take(self, wanted: list[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([self.rows[number] for number, _ in wanted])


def ask(sampling: Sampling, seed: int = 0, at: int = 0) -> VerifyRequest:
    return VerifyRequest(sampling, "coupled", seed, at)


def tokens_of(requests: list[VerifyRequest], step: Logits) -> list[int]:
    return [judged.tokens[0] for judged in judge(requests, step, lazily=True)]


def prefixes(seed: int, at: int) -> torch.Tensor:
    look = Look(0, 0, ask(Sampling(), seed, at), 1, "token")
    return Columns.of([look], torch.device("cpu")).prefixes


def found(logits: torch.Tensor, sampling: Sampling) -> distributions.Distribution:
    """Return a row's distribution: it rejects -1, which is no token, with all of it."""
    request = VerifyRequest(sampling, "separate", 0, 0, (-1,), (1,), (0.5, 0.5))
    (judged,) = judge([request], Logits(logits), lazily=True)
    assert judged.rejection
    return judged.rejection.p


def row(seed: int, size: int = 2000, spread: float = 3.0) -> distributions.Logits:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


@given(SEEDS, PLACES, st.lists(st.integers(0, 2**20), min_size=1, max_size=50))
def test_the_noise_has_the_same_bits_in_torch_and_numpy(
    seed: int, at: int, tokens: list[int]
) -> None:
    hashed = torch_noise.hashes(prefixes(seed, at), torch.tensor([tokens]))

    expected = noise._hash(seed, at, np.array(tokens, np.uint32))
    assert hashed[0].numpy().view(np.uint32).tolist() == expected.tolist()


@given(SEEDS, PLACES)
def test_the_noise_is_equal_to_the_last_digits_of_float64(seed: int, at: int) -> None:
    tokens = np.arange(500)

    drawn = torch_noise.gumbel(prefixes(seed, at), torch.from_numpy(tokens)[None])

    expected = noise.gumbel(seed, at, tokens)  # near 0 a last digit is much of it
    np.testing.assert_allclose(drawn[0].numpy(), expected, rtol=1e-12, atol=1e-15)


@given(st.integers(0, 10**6), SAMPLINGS, SEEDS, PLACES)
@settings(max_examples=200, deadline=None)
def test_a_row_has_the_token_that_the_core_gives_it(
    number: int, sampling: Sampling, seed: int, at: int
) -> None:
    logits = row(number)

    (token,) = tokens_of([ask(sampling, seed, at)], Logits(torch.from_numpy(logits)))

    assert token == distributions.distribution(logits, sampling).coupled(seed, at)


@given(st.integers(0, 10**6), SAMPLINGS)
@settings(max_examples=100, deadline=None)
def test_a_row_has_the_distribution_that_the_core_gives_it(
    number: int, sampling: Sampling
) -> None:
    logits = row(number)

    own = found(torch.from_numpy(logits), sampling)

    expected = distributions.distribution(logits, sampling)
    assert own.tokens.tolist() == sorted(expected.tokens.tolist())
    for token in expected.tokens[:20]:
        assert own.of(int(token)) == pytest.approx(expected.of(int(token)), rel=1e-5)


@given(st.lists(SAMPLINGS, min_size=2, max_size=6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_row_has_the_same_token_in_any_batch(samplings: list[Sampling], number: int) -> None:
    step = Logits(*(torch.from_numpy(row(number + i)) for i in range(len(samplings))))
    requests = [ask(sampling, i, 7 + i) for i, sampling in enumerate(samplings)]

    together = tokens_of(requests, step)

    alone = [
        tokens_of([ask], Logits(each))[0] for ask, each in zip(requests, step.rows, strict=True)
    ]
    assert together == alone


@given(st.integers(0, 10**6), SAMPLINGS)
@settings(max_examples=50, deadline=None)
def test_equal_logits_are_ordered_by_token(number: int, sampling: Sampling) -> None:
    coarse = torch.from_numpy(row(number)).to(torch.bfloat16).to(torch.float32)

    kept = set(found(coarse, sampling).tokens.tolist())

    for token in kept:
        twins = torch.nonzero(coarse == coarse[token])[:, 0].tolist()
        assert all(twin in kept for twin in twins if twin < token)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 40, 500])
def test_the_support_is_the_one_vllm_masks_to(top_p: float, top_k: int) -> None:
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    rows = torch.stack([torch.from_numpy(row(i, 5000, spread=1 + i % 4)) for i in range(40)])
    k = torch.full((40,), top_k or 5000, dtype=torch.int32)
    p = torch.full((40,), top_p)

    masked = ops.apply_top_k_top_p_pytorch(rows.clone(), k, p)

    sampling = Sampling(top_k=top_k, top_p=top_p)
    for i in range(40):
        stock = set(torch.nonzero(masked[i] > -torch.inf)[:, 0].tolist())
        assert set(found(rows[i], sampling).tokens.tolist()) == stock


@given(SEEDS, PLACES)
@settings(deadline=None)
def test_the_coarse_noise_is_near_wherever_it_could_win(seed: int, at: int) -> None:
    tokens = torch.arange(20000)[None]

    near = torch_noise.coarse(prefixes(seed, at), tokens).to(torch.float64)

    exact = torch_noise.gumbel(prefixes(seed, at), tokens)
    assert torch.isfinite(near).all()
    assert (near - exact)[exact > 0].abs().max() < 5e-6
    assert (near <= 0)[exact < -0.01].all()
