"""The shared noise: fixed for all time, equal to murmur3, and Gumbel."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from picospec.speculation import distributions


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


@given(st.integers(0, 2**64 - 1), st.integers(-1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_hash_is_murmur3_over_seed_place_and_token(seed: int, at: int, token: int) -> None:
    (drawn,) = distributions.gumbel(seed, at, np.array([token], np.int64))

    u = (hash_of(seed, at, token) + 0.5) / 2**32
    assert drawn == pytest.approx(-np.log(-np.log1p(-u)), rel=1e-14, abs=1e-14)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.permutations(range(40)))
def test_a_tokens_noise_does_not_depend_on_the_others(
    seed: int, at: int, order: list[int]
) -> None:
    together = distributions.gumbel(seed, at, np.arange(40))

    np.testing.assert_array_equal(
        distributions.gumbel(seed, at, np.array(order)), together[order]
    )


def test_the_first_output_token_is_drawn_at_the_last_prompt_token() -> None:
    assert distributions.noise_index(7, 0) == 6
    assert distributions.noise_index(7, 3) == 9


def test_the_noise_is_gumbel_over_tokens() -> None:
    drawn = distributions.gumbel(2**40 + 5, 11, np.arange(150_000))

    assert stats.kstest(drawn, "gumbel_r").pvalue > 1e-3
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert drawn.var() == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_the_noise_is_gumbel_over_places_for_every_seed() -> None:
    tokens = np.array([5, 300, 70_000])
    drawn = np.array(
        [[distributions.gumbel(seed, at, tokens) for at in range(500)] for seed in range(20)]
    )

    each = stats.kstest(drawn, "gumbel_r", axis=1).pvalue
    assert stats.kstest(each.ravel(), "uniform").pvalue > 1e-3


def test_neighbouring_places_and_tokens_are_not_correlated() -> None:
    drawn = np.array([distributions.gumbel(3, at, np.arange(300)) for at in range(300)])
    drawn -= drawn.mean()

    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        assert abs((one * other).mean() / drawn.var()) < 0.02


def pvalue(temperature: float) -> float:
    """Test how often each token wins argmax(logits / temperature + noise) against p at 1."""
    logits, tokens = np.array([1.0, 0.5, 0.0, -0.5, -1.0, -2.0]), np.arange(6)
    wins = [
        np.argmax(logits / temperature + distributions.gumbel(99, at, tokens))
        for at in range(20_000)
    ]
    p = np.exp(logits) / np.exp(logits).sum()
    return float(stats.chisquare(np.bincount(wins, minlength=6), p * 20_000).pvalue)


def test_the_argmax_under_noise_draws_from_p() -> None:
    assert pvalue(1.0) > 1e-3


def test_the_argmax_under_noise_at_another_temperature_does_not() -> None:
    assert pvalue(1.1) < 1e-6
