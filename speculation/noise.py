"""The Gumbel noise that both ends share, a function of seed, position and token.

Adding independent Gumbel noise to log p and taking the argmax draws from p (Gumbel 1954). Two
distributions with the *same* noise mostly draw the same token (Daliri, Musco, Suresh 2024,
arXiv:2408.07978). So draft tokens are accepted at temperature 1 though no distribution is sent.

The hash is murmur3 (32 bits) over seed low, seed high, position and token, as in vLLM's GPU
runner, so that a GPU host draws this noise with its stock kernel. `noise_index` is the index,
counted from the first prompt token, of the last token before the one drawn: len(prompt) +
position - 1. `docs/protocol.md` has test vectors.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]
_Words = NDArray[np.uint32]

_MASK: Final = 0xFFFFFFFF
_C1: Final = 0xCC9E2D51
_C2: Final = 0x1B873593
_BYTES_HASHED: Final = 16  # four words; murmur3 mixes the length in at the end


def noise_index(prompt_tokens: int, position: int) -> int:
    """Return the noise index of the output token at `position`."""
    return prompt_tokens + position - 1


def gumbel(seed: int, at: int, tokens: Tokens) -> Floats:
    """Return the noise of each token. tokens: int[n]. Result: float64[n], finite.

    seed: 0 <= seed < 2**64. at: see `noise_index`. From u = (hash + 1/2) / 2**32,
    -log(-log(1 - u)): the winning tail comes from u near 0, where no bit is lost.
    """
    u = (_hash(seed, at, tokens.astype(np.uint32)) + 0.5) * 2.0**-32
    noise: Floats = -np.log(-np.log1p(-u))
    return noise


def _hash(seed: int, at: int, tokens: _Words) -> _Words:
    prefix = 0
    for word in (seed & _MASK, seed >> 32, at & _MASK):
        prefix = _mix(prefix, word)
    key = tokens * np.uint32(_C1)
    key = _rotate(key, 15) * np.uint32(_C2)
    h = _rotate(key ^ np.uint32(prefix), 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h ^= np.uint32(_BYTES_HASHED)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    h = (h ^ h >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return h ^ h >> np.uint32(16)


def _rotate(words: _Words, bits: int) -> _Words:
    return words << np.uint32(bits) | words >> np.uint32(32 - bits)


def _mix(h: int, key: int) -> int:
    key = key * _C1 & _MASK
    key = (key << 15 | key >> 17) & _MASK
    h ^= key * _C2 & _MASK
    h = (h << 13 | h >> 19) & _MASK
    return (h * 5 + 0xE6546B64) & _MASK
