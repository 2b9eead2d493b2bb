"""The check of a GPU host compares vLLM's own sampler with noise.py: here its kernel is
interpreted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.gpu_check.kernels import MOST_ULP, ON_CPU, Kernels
from bench.gpu_check.parts import VLLMS_NOISE
from speculation import noise
from speculation.noise import gumbel

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
SHORT = replace(ON_CPU, seeds=2, vocabulary=300)


def later(seed: int, at: int, tokens: np.ndarray) -> np.ndarray:
    """Noise of the next place."""
    return gumbel(seed, at + 1, tokens)


def lower(seed: int, at: int, tokens: np.ndarray) -> np.ndarray:
    """Noise that is lower at one token, by little more than what is accepted."""
    found = gumbel(seed, at, tokens).astype(np.float32)
    found[7] -= 2 * MOST_ULP * np.spacing(max(np.float32(1.0), abs(found[7])))
    return found


def test_vllms_sampler_draws_what_our_noise_draws() -> None:
    kernels = Kernels(SHORT, "cpu")

    right, _ = kernels.vllms_noise()

    assert right
    (line,) = kernels.figures[VLLMS_NOISE]
    assert line["draws"] == 10


@pytest.mark.parametrize("other", [later, lower])
def test_another_noise_is_found_out(other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "gumbel", other)

    assert not Kernels(SHORT, "cpu").vllms_noise()[0]
