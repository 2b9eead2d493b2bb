"""Applies what requests change of the logits: `speculation.sampling.adjustments`, to many rows.

Of a row only the tokens that a setting concerns go to the device: as (row, token) pairs, with
those of all rows in one copy. The device is never waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speculation.sampling.adjustments import Adjustment, penalise
from verifier.vllm_target.worker.upload import upload

Rows = Sequence[tuple[int, Adjustment]]
"""Rows by their numbers, with what changes them."""


def adjust(logits: Tensor, adjustments: Sequence[Adjustment | None]) -> None:
    """Change logits in place: float32[n, V]. adjustments: one a row; None changes nothing."""
    rows = [(i, each) for i, each in enumerate(adjustments) if each is not None]
    if biased := [(i, each) for i, each in rows if each.rules.biased.size]:
        _add_bias(logits, biased)
    if seen := [(i, each) for i, each in rows if each.penalised.size]:
        _penalise(logits, seen)
    if barred := [(i, each) for i, each in rows if each.barred.size]:
        _bar(logits, barred)


def _add_bias(logits: Tensor, rows: Rows) -> None:
    at = _pairs(logits, rows, [each.rules.biased for _, each in rows])
    logits[at] += upload(np.concatenate([e.rules.bias for _, e in rows]), logits.device)


def _penalise(logits: Tensor, rows: Rows) -> None:
    tokens = [each.penalised for _, each in rows]
    at = _pairs(logits, rows, tokens)
    repetition = _spread([each.rules.repetition for _, each in rows], tokens)
    less = np.concatenate([each.less for _, each in rows])
    device = logits.device
    logits[at] = penalise(
        logits[at], upload(repetition, device), upload(less, device), torch.where
    )


def _bar(logits: Tensor, rows: Rows) -> None:
    """Bar tokens, unless nothing else is left in their row: a grammar may want just these."""
    tokens = [each.barred for _, each in rows]
    at = _pairs(logits, rows, tokens)
    kept = logits[at]
    logits[at] = -torch.inf
    numbers = upload(np.array([i for i, _ in rows]), logits.device)
    none_left = logits[numbers].amax(dim=1) == -torch.inf
    order = upload(_spread(range(len(rows)), tokens), logits.device)
    logits[at] = torch.where(none_left[order], kept, -torch.inf)


def _pairs(
    logits: Tensor, rows: Rows, tokens: Sequence[NDArray[np.int64]]
) -> tuple[Tensor, Tensor]:
    """Return the places of tokens in the logits. tokens: of each row, each once."""
    numbers = _spread([i for i, _ in rows], tokens)
    both = upload(np.stack([numbers, np.concatenate(tokens)]), logits.device)
    return both[0], both[1]


def _spread(values: Sequence[object], tokens: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """Return the value of each row once for each of its tokens."""
    return np.repeat(np.array(values), [len(each) for each in tokens])
