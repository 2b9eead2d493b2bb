"""Groups rows so that many are looked at together, within a bound of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from verifier.vllm_target.worker.rows import Columns, Row, StepLogits, logits_of
from verifier.vllm_target.worker.support import Support, cut, greedy, whole

CHUNK_BYTES: Final = 1 << 30
"""Device memory for the rows of one chunk. vLLM leaves a tenth of a GPU free, which is more."""

FIRST_BYTES: Final = 32
"""Memory that a first look takes, by logit: the tensors of `Support.best` over all of a row."""

SECOND_BYTES: Final = 96
"""Memory that a look at the whole vocabulary takes, by logit: a stable sort, and sums in
float64 over it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one kind and judge, to be looked at together."""

    rows: Sequence[Row]
    count: int
    """Candidates that supports are looked for among."""

    @property
    def separate(self) -> bool:
        return self.rows[0].request.judge == "separate"

    def supports(self, step: StepLogits) -> tuple[Support, Columns, Tensor]:
        """Return the supports, the settings, and which supports are found: bool[n]."""
        logits = logits_of(self.rows, step)
        columns = Columns.of(self.rows, logits.device)
        kind = self.rows[0].kind
        if kind == "cut":
            support, found = cut(logits, columns, self.count)
            return support, columns, found
        support = greedy(logits) if kind == "greedy" else whole(logits, columns)
        every = torch.ones(len(self.rows), dtype=torch.bool, device=logits.device)
        return support, columns, every


def chunks(rows: Sequence[Row], count: int, step: StepLogits) -> Iterator[Chunk]:
    """Yield chunks of at most as many rows as memory allows."""

    def alike(row: Row) -> tuple[str, str]:
        return row.kind, row.request.judge

    size = step.vocabulary_size
    most = max(1, CHUNK_BYTES // (size * (FIRST_BYTES if count < size else SECOND_BYTES)))
    for _, group in groupby(sorted(rows, key=alike), alike):
        same = list(group)
        for start in range(0, len(same), most):
            yield Chunk(same[start : start + most], count)
