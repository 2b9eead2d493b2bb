"""Applies what requests change of the logits: `speculation.sampling.adjustments`, to many rows.

Only what a setting concerns goes to the device: of each session what its text has seen, which
all its rows share, and of each row what the draft tokens before it change of that. The device
is never waited for.

    n  rows      m  (row, token) pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.adjustments import Adjustment, penalise
from picospec.verifier.vllm_target.verify_request import VerifyRequest
from picospec.verifier.vllm_target.worker.upload import upload

Ints = NDArray[np.int64]
Pairs = tuple[Tensor, Tensor]
"""Places in the logits: rows int64[m] and tokens int64[m]."""


@dataclass(frozen=True, slots=True)
class _Session:
    """The rows of one request."""

    adjustment: Adjustment
    """That of the request's first row."""

    draft: tuple[TokenId, ...]
    numbers: list[int] = field(default_factory=list)  # where its rows are in the logits
    indices: list[int] = field(default_factory=list)  # which rows of its pass these are

    @property
    def barred(self) -> list[int]:
        """Its rows in which stop tokens are barred."""
        least, here = self.adjustment.rules.min_tokens, self.adjustment.position
        rows = zip(self.numbers, self.indices, strict=True)
        return [number for number, index in rows if here + index < least]


def adjust(logits: Tensor, rows: Sequence[tuple[VerifyRequest, int]]) -> None:
    """Change logits in place: float32[n, V]. rows: each a request's, with its index there."""
    found: dict[int, _Session] = {}
    for number, (request, index) in enumerate(rows):
        if request.adjustment is not None:
            new = _Session(request.adjustment, request.draft)
            session = found.setdefault(id(request), new)
            session.numbers.append(number)
            session.indices.append(index)
    sessions = list(found.values())
    if biased := [each for each in sessions if each.adjustment.rules.biased.size]:
        _add_bias(logits, biased)
    if penalised := [each for each in sessions if each.adjustment.seen is not None]:
        _penalise(logits, penalised)
    if barred := [each for each in sessions if each.barred]:
        _bar(logits, barred)


def _add_bias(logits: Tensor, sessions: Sequence[_Session]) -> None:
    rules = [(each.numbers, each.adjustment.rules) for each in sessions]
    at = _pairs(logits, [(numbers, each.biased) for numbers, each in rules])
    bias = np.concatenate([np.tile(each.bias, len(numbers)) for numbers, each in rules])
    logits[at] += upload(bias, logits.device)


def _bar(logits: Tensor, sessions: Sequence[_Session]) -> None:
    """Bar stop tokens, unless nothing else is left in a row: a grammar may want just these."""
    rows = [(each.barred, each.adjustment.rules.stop_tokens) for each in sessions]
    at = _pairs(logits, rows)
    kept = logits[at]
    logits[at] = -torch.inf
    logits[at] = torch.where(logits.amax(dim=1)[at[0]] == -torch.inf, kept, -torch.inf)


def _pairs(logits: Tensor, rows: Sequence[tuple[Sequence[int], Ints]]) -> Pairs:
    """Return the pairs of some rows with the tokens that they have in common, part by part."""
    numbers = [np.repeat(np.array(some), len(tokens)) for some, tokens in rows]
    tokens = [np.tile(tokens, len(some)) for some, tokens in rows]
    both = np.stack([np.concatenate(numbers), np.concatenate(tokens)])
    at = upload(both, logits.device)
    return at[0], at[1]


def _penalise(logits: Tensor, sessions: Sequence[_Session]) -> None:
    """Penalise what the texts have seen, and what the drafts change of that in its place."""
    seen, repetition, less = _seen(logits, sessions)
    changed = penalise(logits[seen], repetition, less, torch.where)
    drafted, repetition, less = _drafted(logits, sessions)
    changed_by_draft = penalise(logits[drafted], repetition, less, torch.where)
    logits[seen] = changed
    logits[drafted] = changed_by_draft


def _seen(logits: Tensor, sessions: Sequence[_Session]) -> tuple[Pairs, Tensor, Tensor]:
    """Return pairs of what the texts before the passes have seen, with each pair's penalties.

    A session's tokens are uploaded once; the device pairs them with each of its rows.
    """
    device = logits.device
    counts = [len(each.adjustment.penalised) for each in sessions]
    starts = np.cumsum([0, *counts[:-1]])
    rows = [len(each.numbers) for each in sessions]
    numbers = np.concatenate([each.numbers for each in sessions])
    lengths, starts = np.repeat(counts, rows), np.repeat(starts, rows)
    total = int(lengths.sum())
    shifts = starts - (np.cumsum(lengths) - lengths)
    number, length, shift = upload(np.stack([numbers, lengths, shifts]), device)
    row = torch.repeat_interleave(
        torch.arange(len(lengths), device=device), length, output_size=total
    )
    entry = torch.arange(total, device=device) + shift[row]
    tokens = upload(np.concatenate([each.adjustment.penalised for each in sessions]), device)
    less = upload(np.concatenate([each.adjustment.less for each in sessions]), device)
    repetition = upload(_repetition(sessions, rows), device)
    return (number[row], tokens[entry]), repetition[row], less[entry]


def _drafted(logits: Tensor, sessions: Sequence[_Session]) -> tuple[Pairs, Tensor, Tensor]:
    """Return pairs of rows with the draft tokens before them, with each pair's penalties."""
    parts = []
    for each in sessions:
        numbers = np.full(len(each.draft) + 1, -1)
        numbers[each.indices] = each.numbers
        rows, tokens, less = each.adjustment.drafted(each.draft)
        wanted = numbers[rows] >= 0
        parts.append((numbers[rows][wanted], tokens[wanted], less[wanted]))
    numbers, tokens, less = (np.concatenate(column) for column in zip(*parts, strict=True))
    at = upload(np.stack([numbers, tokens]), logits.device)
    repetition = _repetition(sessions, [len(rows) for rows, _, _ in parts])
    return (at[0], at[1]), upload(repetition, logits.device), upload(less, logits.device)


def _repetition(sessions: Sequence[_Session], times: Sequence[int]) -> NDArray[np.float32]:
    """Return each session's repetition penalty as often as `times` says."""
    return np.repeat([each.adjustment.rules.repetition for each in sessions], times)
