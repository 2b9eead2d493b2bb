"""Divides a step's rows between our judge and vLLM's, which judges its own draft tokens.

vLLM judges only requests without a session. Their rows are taken out of the step, because
vLLM's kernels have no room for the many draft tokens of an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Judged(NamedTuple):
    """The arguments of vLLM's `rejection_sample` after the logits: R requests with n rows."""

    drafted: Tensor
    """int[n]: the draft token in a row's input."""

    bounds: Tensor
    """int[R + 1]: the first row of each request, and the end of the last one's rows."""

    at: Tensor
    """int[n]: the noise's place."""

    slots: Tensor
    """int[R]: the request's place in temperatures and seeds."""

    rows: Tensor
    """int[n]: the same for each row."""

    columns: Tensor
    """int[n]: the row's number in its request."""

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


NUMBER_OF_JUDGED: Final = len(Judged._fields)


@dataclass(frozen=True, slots=True)
class Others:
    """The requests of a step that have no session."""

    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    """The arguments of Judged.of, for these requests."""

    @staticmethod
    def of(requests: Sequence[tuple[int, bool]]) -> Others:
        """Return the requests without a session. requests: the number of rows of each request,
        and whether it has a session."""
        counts = np.array([count for count, _ in requests], np.int64)
        theirs = np.array([not ours for _, ours in requests], np.bool_)
        bounds = np.concatenate([[0], np.cumsum(counts[theirs])])
        rows = np.flatnonzero(np.repeat(theirs, counts))
        return Others(np.flatnonzero(theirs), rows, bounds)
