"""Judges draft tokens by rules that need p, where the logits are on an accelerator.

The host waits twice a step or more: for the probability of each draft token, and for the
distribution at the end of each pass. Rows are read in parts, because their distributions take
memory that vLLM has not reserved.

    R  requests      n  their rows, request after request      V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from speculation.distributions import GREEDY_BELOW, Distribution
from speculation.judge import Judgement
from speculation.model_facts import TokenId
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.upload import upload

ROWS: Final = 128
"""This many rows are read at once: 0.5 GB for 152,000 tokens, in float64 and four times in
float32."""


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
    tensors = upload(rows, device), upload(np.repeat(greedy, lengths), device)
    parts = zip(*(each.split(ROWS) for each in (*tensors, upload(tokens, device))), strict=True)
    probabilities = [
        _p(logits[at], is_greedy).gather(1, of[:, None]) for at, is_greedy, of in parts
    ]
    drafted = torch.cat(probabilities).cpu().numpy()
    firsts = np.cumsum([0, *lengths[:-1]])
    passes = [
        [*map(_single, request.draft, drafted[first:, 0]), _single(0, 1.0)]
        for request, first in zip(requests, firsts, strict=True)
    ]
    judged = zip(requests, passes, strict=True)
    ends = [request.judge(rows.__getitem__).accepted for request, rows in judged]
    chosen = upload(firsts + ends, device)
    parts = zip(*(each[chosen].split(ROWS) for each in tensors), strict=True)
    whole = [row for at, is_greedy in parts for row in _p(logits[at], is_greedy).cpu().numpy()]
    for rows_known, end, judged_row in zip(passes, ends, whole, strict=True):
        kept = np.flatnonzero(judged_row)
        rows_known[end] = Distribution(kept, judged_row[kept].astype(np.float64))
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
