"""vLLM's own sampler draws the noise that edges share; and so does the kernel in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton_interpreted.kernels import gumbel_sample_kernel
from vllm.triton_utils.dispatcher import KernelOverride
from vllm.v1.worker.gpu.sample import gumbel

from picospec.speculation import noise

INTERPRETED = [gumbel._gumbel_sample_kernel]
"""In a list, where vLLM does not find it when it puts the other kernel everywhere."""

STEPS, ROWS, V = 50, 20, 1100


def test_a_thousand_draws_are_those_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    (interpreted,) = INTERPRETED
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        logits = torch.randn(ROWS, V, generator=generator) * 2
        slots = torch.randint(0, ROWS, (ROWS,), generator=generator)
        temperatures = (torch.rand(ROWS, generator=generator) * 2).round()
        seeds = torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=generator)
        at = torch.randint(0, 4000, (ROWS,), generator=generator)
        expected = []
        for row, slot, noise_index in zip(logits.double().numpy(), slots, at, strict=True):
            drawn = bool(temperatures[slot])
            seed = int(seeds[slot]) % 2**64
            added = noise.gumbel(seed, int(noise_index), np.arange(V)) if drawn else 0.0
            expected.append(int((row + added).argmax()))

        for kernel in (interpreted, KernelOverride(interpreted, gumbel_sample_kernel)):
            monkeypatch.setattr(gumbel, "_gumbel_sample_kernel", kernel)
            found = gumbel.gumbel_sample(
                logits, slots, temperatures, seeds, at,
                apply_temperature=False, is_drafting=False,
            )  # fmt: skip
            assert found.tolist() == expected
