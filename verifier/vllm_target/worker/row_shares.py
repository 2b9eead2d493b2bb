"""Divides a step's rows between our judge and vLLM's, which judges its own draft tokens.

vLLM judges only requests without a session. Their rows are taken out of the step, because
vLLM's kernels have no room for the many draft tokens of an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Judged(NamedTuple):
    """vLLM's `rejection_sample` takes these after the logits, for R requests with n rows."""

    drafted: Tensor
    """Each row has this draft token in its input: int[n]."""

    bounds: Tensor
    """The rows of each request begin here, and the last ones end here: int[R + 1]."""

    at: Tensor
    """The noise has this place: int[n]."""

    slots: Tensor
    """The request has this place in temperatures and seeds: int[R]."""

    rows: Tensor
    """The row's request has this place there: int[n]."""

    columns: Tensor
    """The row has this number in its request: int[n]."""

    temperatures: Tensor
    seeds: Tensor
    most: int

    def of(self, places: Tensor, rows: Tensor, bounds: Tensor) -> Judged:
        """Return the part of some requests. places: int[r], their indices. rows: int[m], their
        rows. bounds: int[r + 1], the bounds inside the part."""
        return self._replace(
            drafted=self.drafted[rows],
            bounds=bounds.to(self.bounds.dtype),
            at=self.at[rows],
            slots=self.slots[places],
            rows=self.rows[rows],
            columns=self.columns[rows],
        )


@dataclass(frozen=True, slots=True)
class Others:
    """Others are the requests of a step that have no session."""

    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    """Judged.of takes these arguments for the requests."""

    @staticmethod
    def of(requests: Sequence[tuple[int, bool]]) -> Others:
        """Return the requests without a session. requests: the number of rows of each request,
        and whether it has a session."""
        counts = np.array([count for count, _ in requests], np.int64)
        theirs = np.array([not ours for _, ours in requests], np.bool_)
        bounds = np.concatenate([[0], np.cumsum(counts[theirs])])
        rows = np.flatnonzero(np.repeat(theirs, counts))
        return Others(np.flatnonzero(theirs), rows, bounds)
