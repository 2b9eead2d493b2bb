"""Looks at many rows together, in chunks that bound the memory; chunks do not wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from math import nan
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verifier.vllm_target.worker.rows import (
    Columns,
    Kind,
    Look,
    StepLogits,
    Wanted,
    logits_of,
    upload,
)
from verifier.vllm_target.worker.support import supports

CHUNK_BYTES: Final = 1 << 30
"""Device memory for the rows of one chunk. vLLM leaves a tenth of a GPU free, which is more."""

FIRST_BYTES: Final = 32
"""Memory that a look among some candidates takes, by logit: the tensors of `Support.best` over
all of a row."""

SECOND_BYTES: Final = 96
"""Memory that a look at the whole vocabulary takes, by logit: a stable sort, and sums in
float64 over it."""


def look_at(
    looks: Sequence[Look], step: StepLogits
) -> Iterator[tuple[Look, NDArray[np.float32]]]:
    """Wait for the device once; yield what each look finds, in any order: see `Look.wants`."""
    chunks = list(_chunks(looks, step.vocabulary_size))
    values = torch.cat([_found(chunk, step).flatten() for chunk in chunks]).cpu().numpy()
    for look in chain.from_iterable(chunks):
        width = step.vocabulary_size if look.wants == "all" else 1
        yield look, values[:width]
        values = values[width:]


def _chunks(looks: Sequence[Look], size: int) -> Iterator[Sequence[Look]]:
    """Yield looks of one sort together, at most as many as memory allows."""
    for (_, _, count), alike in groupby(sorted(looks, key=_sort), _sort):
        row_bytes = size * (FIRST_BYTES if count < size else SECOND_BYTES)
        most, left = max(1, CHUNK_BYTES // row_bytes), list(alike)
        yield from (left[start : start + most] for start in range(0, len(left), most))


def _sort(look: Look) -> tuple[Kind, Wanted, int]:
    return look.kind, look.wants, look.candidates


def _found(looks: Sequence[Look], step: StepLogits) -> Tensor:
    """Return what looks of one sort find: float32[n, 1 or V]."""
    logits = logits_of(looks, step)
    columns = Columns.of(looks, logits.device)
    kind, wants, count = _sort(looks[0])
    support, found = supports(kind, logits, columns, count)
    match wants:
        case "token":
            values = support.best(columns.prefixes)
        case "p":
            drafted = [[(*look.request.draft, -1)[look.index]] for look in looks]
            values = support.p_of(upload(np.array(drafted, np.int64), logits.device))
        case _:
            values = support.spread(step.vocabulary_size)
    return values.to(torch.float32).masked_fill(~found, nan)
