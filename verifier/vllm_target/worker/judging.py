"""Judges draft tokens where the logits are on an accelerator: by noise, or by p.

By noise, vLLM's own sampler draws every row as it would be without draft tokens, with the noise
that edges share; a draft token is accepted if the row before it drew it. So a session's text is
the one that vLLM itself generates with that seed. The host never waits for the device.

By p, for rules that need it, the host waits twice a step or more: for the probability of each
draft token, and for the distribution at the end of each pass. Rows are read in parts, because
their distributions take memory that vLLM has not reserved.

    R  requests      n  their rows, request after request      V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from picospec.speculation.distributions import GREEDY_BELOW, Distribution
from picospec.speculation.judge import Judgement
from picospec.speculation.messages import TokenId
from picospec.verifier.vllm_target.crossing import VerifyRequest
from picospec.verifier.vllm_target.worker.extension import upload

NO_DRAW: Final = -1
NO_DRAFT: Final = -2
"""Marks a place without a row. vLLM's mark for a draft token that a grammar forbids is -1."""

ROWS: Final = 128
"""This many rows are read at once: .5 GB for 152,000 tokens, in float64 and four times in
float32."""


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


def judge_by_p(
    requests: Sequence[VerifyRequest], logits: Tensor, starts: Sequence[int]
) -> list[Judgement]:
    """Return the outcome of each request's pass. logits: float[rows, V], after all changes by
    the settings except a temperature of 0. starts: for each request, the row that judges its
    first draft token."""
    lengths = [len(request.draft) + 1 for request in requests]
    numbers = zip(starts, lengths, strict=True)
    rows = np.concatenate([start + np.arange(length) for start, length in numbers])
    greedy = [request.sampling.temperature < GREEDY_BELOW for request in requests]
    device = logits.device
    tokens = np.array([token for request in requests for token in (*request.draft, 0)])
    given = upload(rows, device), upload(np.repeat(greedy, lengths), device)
    parts = zip(*(each.split(ROWS) for each in (*given, upload(tokens, device))), strict=True)
    asked = [_p(logits[at], is_greedy).gather(1, of[:, None]) for at, is_greedy, of in parts]
    drafted = torch.cat(asked).cpu().numpy()
    firsts = np.cumsum([0, *lengths[:-1]])
    passes = [
        [*map(_single, request.draft, drafted[first:, 0]), _single(0, 1.0)]
        for request, first in zip(requests, firsts, strict=True)
    ]
    judged = zip(requests, passes, strict=True)
    ends = [request.judge(rows.__getitem__).accepted for request, rows in judged]
    chosen = upload(firsts + ends, device)
    parts = zip(*(each[chosen].split(ROWS) for each in given), strict=True)
    whole = [row for at, is_greedy in parts for row in _p(logits[at], is_greedy).cpu().numpy()]
    for rows_known, end, found in zip(passes, ends, whole, strict=True):
        kept = np.flatnonzero(found)
        rows_known[end] = Distribution(kept, found[kept].astype(np.float64))
    judged = zip(requests, passes, strict=True)
    return [request.judge(rows.__getitem__) for request, rows in judged]


def _p(rows: Tensor, greedy: Tensor) -> Tensor:
    """Return the distributions of rows, as they are sent: float32[n, V]. greedy: bool[n]."""
    best = rows.argmax(dim=1, keepdim=True)
    certain = torch.zeros_like(rows, dtype=torch.float32).scatter_(1, best, 1.0)
    drawn = torch.softmax(rows, dim=1, dtype=torch.float64).to(torch.float32)
    return torch.where(greedy[:, None], certain, drawn)


def _single(token: TokenId, p: float) -> Distribution:
    """Return the known part of a row whose draft token may be accepted: that token's p."""
    return Distribution(np.array([token]), np.array([p], np.float64))
