"""The noise that both ends share, as a compiled kernel: what noise.py specifies, in float32.

vLLM's own kernel draws on a GPU host. This one, which needs no vLLM, shows that the arithmetic
of such a kernel, compiled for this device, agrees with numpy's. It stands alone because
kernels.py imports it late: when it is known whether Triton compiles or interprets, and only for
the parts that need Triton.

    n  rows      V  tokens of a row
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK: Final = 4096
"""One program computes at most this many tokens of a row."""


@triton.jit
def _mixed(h: tl.tensor, word: tl.tensor) -> tl.tensor:
    """Return the murmur3 state (uint32) after one more word."""
    word = word.to(tl.uint32) * 0xCC9E2D51
    word = ((word << 15) | (word >> 17)) * 0x1B873593
    h = h ^ word
    return ((h << 13) | (h >> 19)) * 5 + 0xE6546B64


@triton.jit
def _noise(seed: tl.tensor, at: tl.tensor, tokens: tl.tensor) -> tl.tensor:
    """Return the noise of tokens. seed, at: int64; the seed's bits are those of a uint64."""
    h = _mixed(tl.zeros_like(tokens).to(tl.uint32), seed & 0xFFFFFFFF)
    h = _mixed(h, (seed >> 32) & 0xFFFFFFFF)
    h = _mixed(_mixed(h, at & 0xFFFFFFFF), tokens) ^ 16
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    u = (h.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    left = ((h ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 1 - u, exactly
    # log1p(-u) = log(w) * u / (1 - w), where w is 1 - u as it was rounded (Kahan)
    gone = tl.where(left == 1.0, 1.0, 1.0 - left)
    small = tl.where(left == 1.0, u, -tl.log(left) * (u / gone))
    return -tl.log(tl.where(u < 0.5, small, -tl.log(left)))


@triton.jit
def _noise_kernel(
    out: tl.tensor, seeds: tl.tensor, at: tl.tensor, first: int, size: int, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    noise = _noise(tl.load(seeds + row), tl.load(at + row), first + place)
    tl.store(out + row * size + place, noise, mask=place < size)


@triton.jit
def _draw_kernel(
    best: tl.tensor, where: tl.tensor, logits: tl.tensor, seeds: tl.tensor, at: tl.tensor,
    first: tl.tensor, size: int, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    noise = _noise(tl.load(seeds + row), tl.load(at + row), tl.load(first + row) + place)
    scores = tl.load(logits + row * size + place, mask=place < size, other=float("-inf"))
    score, index = tl.max(scores + noise, axis=0, return_indices=True)
    tl.store(best + row * blocks + block, score)
    tl.store(where + row * blocks + block, block * BLOCK + index)


def noise(seeds: Tensor, at: Tensor, first: int, size: int) -> Tensor:
    """Return the noise of the tokens from `first` on: float32[n, size]. seeds, at: int64[n]."""
    out = torch.empty((len(seeds), size), device=seeds.device)
    grid = (len(seeds), triton.cdiv(size, BLOCK))
    _noise_kernel[grid](out, seeds, at, first, size, BLOCK=BLOCK)
    return out


def draw(logits: Tensor, seeds: Tensor, at: Tensor, first: Tensor | None = None) -> Tensor:
    """Return the token that each row draws, counted from its first one: int64[n].

    logits: float32[n, V], contiguous. seeds, at, first: int64[n]. first: each row's first
    token; None: 0.
    """
    rows, size = logits.shape
    block = min(BLOCK, triton.next_power_of_2(size))
    blocks = triton.cdiv(size, block)
    best = torch.empty((rows, blocks), device=logits.device)
    where = torch.empty((rows, blocks), device=logits.device, dtype=torch.int64)
    first = torch.zeros_like(at) if first is None else first
    _draw_kernel[rows, blocks](best, where, logits, seeds, at, first, size, BLOCK=block)
    return where.gather(1, best.argmax(dim=1, keepdim=True))[:, 0]
