"""What a request changes of the logits before temperature and cuts.

The judge and the edge apply the same function: the judge because the request says so, the edge
so that it does not draft what must be rejected.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from speculation.protocol.messages import Open
from speculation.sampling.distributions import Logits

Adjust = Callable[[Logits, int], Logits]
"""Adjust(logits, position) returns what the logits (float32[V]) of an output position become.
It never changes its argument."""


def adjustment(request: Open) -> Adjust:
    """Return what a request's `sampling.extras` ask for. Raises ValueError.

    min_tokens    No stop token can be generated before this position.
    """
    least, stops = 0, list(request.stop_tokens)
    if (given := request.sampling.extras.get("min_tokens")) is not None:
        least = msgspec.json.decode(given, type=int)  # its errors are ValueErrors
        if not 0 <= least <= request.max_tokens:
            raise ValueError(f"{least} is not in 0..{request.max_tokens}")

    def adjust(logits: Logits, position: int) -> Logits:
        if position >= least or not stops:
            return logits
        adjusted = logits.copy()
        adjusted[stops] = -np.inf
        return adjusted

    return adjust
