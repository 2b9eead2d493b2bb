"""The shared noise on any torch device: `speculation.sampling.noise`, for many rows at once.

int32 arithmetic wraps as uint32 does; only the right shifts need a mask. The tail is kept by
computing in float64, as at the edge, so both ends rank the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

_MASK: Final = 0xFFFFFFFF
_C1: Final = 0xCC9E2D51
_C2: Final = 0x1B873593
_BYTES_HASHED: Final = 16


def gumbel(seeds: Sequence[int], places: Sequence[int], tokens: Tensor) -> Tensor:
    """Return the noise of each token of each row: float64[n, m], finite.

    seeds, places: n each, as for `speculation.sampling.noise.gumbel`. tokens: int[n, m].
    """
    words = hashes(seeds, places, tokens).to(torch.int64) & _MASK
    u = (words.to(torch.float64) + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-u))


def coarse(seeds: Sequence[int], places: Sequence[int], tokens: Tensor) -> Tensor:
    """Return the noise in float32[n, m]: right to 1e-6 where it is large, and fast."""
    words = hashes(seeds, places, tokens)
    u = words.to(torch.float32)
    u += (words < 0) * 2.0**32
    u += 0.5
    u *= 2.0**-32
    u.clamp_(max=1.0 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def hashes(seeds: Sequence[int], places: Sequence[int], tokens: Tensor) -> Tensor:
    """Return murmur3 over (seed low, seed high, place, token): uint32[n, m], kept as int32."""
    prefixes = [_prefix(seed, at) for seed, at in zip(seeds, places, strict=True)]
    state = torch.tensor(prefixes, dtype=torch.int32, device=tokens.device)
    key = tokens.to(torch.int32) * _signed(_C1)
    key = _rotate(key, 15) * _signed(_C2)
    h = _rotate(key ^ state[:, None], 13) * 5 + _signed(0xE6546B64)
    h ^= _BYTES_HASHED
    h = (h ^ _right(h, 16)) * _signed(0x85EBCA6B)
    h = (h ^ _right(h, 13)) * _signed(0xC2B2AE35)
    return h ^ _right(h, 16)


def _prefix(seed: int, at: int) -> int:
    """Hash the words that a whole row shares; signed, as int32 holds it."""
    h = 0
    for word in (seed & _MASK, seed >> 32, at & _MASK):
        h = _mix(h, word)
    return _signed(h)


def _mix(h: int, key: int) -> int:
    key = key * _C1 & _MASK
    key = (key << 15 | key >> 17) & _MASK
    h ^= key * _C2 & _MASK
    h = (h << 13 | h >> 19) & _MASK
    return (h * 5 + 0xE6546B64) & _MASK


def _rotate(words: Tensor, bits: int) -> Tensor:
    return words << bits | _right(words, 32 - bits)


def _right(words: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned words."""
    return words >> bits & (1 << 32 - bits) - 1


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
