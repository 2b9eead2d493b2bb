"""Judges draft tokens with vLLM's own sampler, which draws with the noise that edges share.

Every row is drawn as it would be without draft tokens; a draft token is accepted if the row
before it drew it. So a session's text is the one that vLLM itself generates with that seed. The
host never waits for the device. This module needs torch alone, so that its kernel can be tried
on a host that has nothing else.

    R  requests      n  their rows, request after request      V  vocabulary size
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NO_DRAW: Final = -1
NO_DRAFT: Final = -2
"""Marks a place without a row. vLLM's mark for a draft token that a grammar forbids is -1."""


def judge_by_noise(
    logits: Tensor,
    drafted: Tensor,
    ends: Tensor,
    at: Tensor,
    slots: Tensor,
    columns: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Return the tokens drawn for each request, int64[R, most + 1], and how many of them count:
    int32[R].

    logits: float[n, V], after all changes by a request's settings. drafted: int[n], the token
    in the row's input, below 0 if it cannot be accepted. ends: int[R], the row after each
    request's last one. at: int[n], the noise's place. slots: int[n], the place of the row's
    request in temperatures and seeds. columns: int[n], the row's number in its request.
    """
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample  # `judged` needs no vLLM

    drawn = gumbel_sample(logits, slots, temperatures, seeds, at, False, False)
    return judged(drawn, drafted, ends, columns, most)


def judged(
    drawn: Tensor, drafted: Tensor, ends: Tensor, columns: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Return what `judge` does for rows whose tokens are drawn: int64[n]."""
    rows = torch.arange(len(drawn), device=drawn.device)
    place = torch.searchsorted(ends.to(torch.int64), rows, right=True), columns.to(torch.int64)
    sampled = drawn.new_full((len(ends), most + 1), NO_DRAW)
    sampled[place] = drawn
    drafts = drawn.new_full((len(ends), most + 2), NO_DRAFT)
    drafts[place] = drafted.to(drawn.dtype)
    right = (sampled == drafts[:, 1:]).to(torch.int32)
    return sampled, right.cumprod(dim=1).sum(dim=1, dtype=torch.int32) + 1
