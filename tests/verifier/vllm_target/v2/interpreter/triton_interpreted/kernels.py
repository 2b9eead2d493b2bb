"""Kernels of vLLM's in torch, where the interpreter is slow or fails."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speculation.noise import gumbel


def gumbel_sample_kernel(
    local_argmax: Tensor, _0: int, local_max: Tensor, _1: int,
    logits_cache: Tensor | None, _2: int, _3: int, column: Tensor, source: Tensor, _6: int,
    logits: Tensor, _7: int, mapping: Tensor, seeds: Tensor, pos: Tensor, temperatures: Tensor,
    vocab_size: int, BLOCK_SIZE: int, IS_DRAFTING: bool, APPLY_TEMPERATURE: bool,
    USE_FP64: bool, PER_TOKEN_COL: bool,
) -> None:  # fmt: skip
    """Draw tokens, in all blocks at once, which are 48 a row with SmolLM2. A test compares this
    with the interpreted kernel."""
    if USE_FP64:
        raise NotImplementedError("noise of 64 bits")
    if logits_cache is not None:
        known = (mapping >= 0).nonzero().view(-1)
        columns = column.expand(len(mapping))[known].to(torch.int64)
        logits_cache[mapping[known].to(torch.int64), columns, :vocab_size] = source[known]
    values = logits.to(torch.float32, copy=True)
    temperature = temperatures[mapping]
    drawn = (temperature != 0).nonzero().view(-1)
    if len(drawn):
        if APPLY_TEMPERATURE:
            values[drawn] /= temperature[drawn, None]
        place = pos[drawn].to(torch.int64) + ((1 << 30) if IS_DRAFTING else 0)
        both = seeds[mapping[drawn]].tolist(), place.tolist()
        tokens = np.arange(vocab_size)
        each = [gumbel(s % 2**64, at, tokens) for s, at in zip(*both, strict=True)]
        noise = torch.from_numpy(np.stack(each))
        values[drawn] += noise.to(torch.float32)
    blocks = local_max.shape[1]
    padded = values.new_full((len(values), blocks * BLOCK_SIZE), -torch.inf)
    padded[:, :vocab_size] = values
    best, where = padded.view(len(values), blocks, BLOCK_SIZE).max(dim=2)
    local_max.copy_(best)
    local_argmax.copy_(where + torch.arange(blocks) * BLOCK_SIZE)


def apply_grammar_bitmask_kernel(
    logits: Tensor, _0: int, places: Tensor, bounds: Tensor, bitmask: Tensor, _1: int,
    vocab_size: int, MASK_STRIDE: int, BLOCK_SIZE: int,
) -> None:  # fmt: skip
    """Mask what a grammar forbids. The interpreter has no such mask of a store."""
    request, position = places.to(torch.int64) // MASK_STRIDE, places % MASK_STRIDE
    row = bounds[request] + position
    active = row < bounds[request + 1]
    tokens = torch.arange(vocab_size)
    forbidden = bitmask[active][:, tokens // 32] >> (tokens % 32) & 1 == 0
    logits[row[active]] = logits[row[active]].masked_fill(forbidden, -torch.inf)


def ngram_scan_kernel(
    tokens: Tensor, _0: int, slots: Tensor, lengths: Tensor, sampled: Tensor, scores: Tensor,
    _1: int, longest_text: int, min_n: int, max_n: int, *_2: int, **_3: int,
) -> None:  # fmt: skip
    """Find the latest of the longest matches of a text's end, as vLLM encodes it."""
    for row, slot in enumerate(slots.tolist()):
        text = tokens[slot, : int(lengths[slot])].tolist()
        scores[row] = 0
        for n in range(min_n, max_n + 1) if int(sampled[row]) > 0 else ():
            found = [i for i in range(len(text) - n) if text[i : i + n] == text[-n:]]
            if found:
                scores[row, 0] = n * (longest_text + 1) + found[-1] + 1


def ngram_finalize_kernel(
    tokens: Tensor, _0: int, slots: Tensor, lengths: Tensor, sampled: Tensor, last: Tensor,
    scores: Tensor, _1: int, drafts: Tensor, longest_text: int, _2: int, most: int,
    *_3: int, **_4: int,
) -> None:  # fmt: skip
    """Propose what followed the match. The interpreter fails on vLLM's."""
    for row, slot in enumerate(slots.tolist()):
        text, score = tokens[slot, : int(lengths[slot])].tolist(), int(scores[row].max()) - 1
        start = sum(divmod(score, longest_text + 1)) if score >= 0 else len(text)
        found = text[start : start + most]
        drafts[row] = torch.tensor(found + [int(last[slot])] * (most - len(found)))
