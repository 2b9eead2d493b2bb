"""The shared noise on any torch device: `speculation.sampling.noise`, for many rows at once.

int32 arithmetic wraps as uint32 does; only the right shifts need a mask. The noise that can win
is computed in float64, as at the edge, so that both ends rank the same tokens.

    prefixes: int32[n, 1]  the hash of what each row's tokens share; see `prefixes_of`
    tokens: int[n, m]      token ids
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_BYTES_HASHED: Final = 16


def gumbel(prefixes: Tensor, tokens: Tensor) -> Tensor:
    """Return the noise of each token of each row: float64[n, m], finite."""
    hashed = hashes(prefixes, tokens).to(torch.int64) & 0xFFFFFFFF
    u = (hashed.to(torch.float64) + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-u))


def coarse(prefixes: Tensor, tokens: Tensor) -> Tensor:
    """Return the noise in float32[n, m]: right to 1e-6 where it is large, and fast."""
    hashed = hashes(prefixes, tokens)
    u = hashed.to(torch.float32)
    u += (hashed < 0) * 2.0**32
    u += 0.5
    u *= 2.0**-32
    u.clamp_(max=1.0 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def prefixes_of(words: Tensor) -> Tensor:
    """Hash a row's seed mod 2**32, seed div 2**32 and place. words: int32[n, 3]."""
    h = torch.zeros_like(words[:, :1])
    for word in words.split(1, dim=1):
        h = _mix(h, word)
    return h


def hashes(prefixes: Tensor, tokens: Tensor) -> Tensor:
    """Return murmur3 over a row's prefix and each token: uint32[n, m], kept as int32."""
    h = _mix(prefixes, tokens.to(torch.int32))
    h ^= _BYTES_HASHED
    h = (h ^ _right(h, 16)) * _signed(0x85EBCA6B)
    h = (h ^ _right(h, 13)) * _signed(0xC2B2AE35)
    return h ^ _right(h, 16)


def _mix(h: Tensor, word: Tensor) -> Tensor:
    key = _rotate(word * _signed(0xCC9E2D51), 15) * _signed(0x1B873593)
    return _rotate(key ^ h, 13) * 5 + _signed(0xE6546B64)


def _rotate(words: Tensor, bits: int) -> Tensor:
    return words << bits | _right(words, 32 - bits)


def _right(words: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned words."""
    return words >> bits & (1 << 32 - bits) - 1


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
