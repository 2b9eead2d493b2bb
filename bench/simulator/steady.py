"""What a steady stream makes of a simulated answer, by the gateway's own Pacer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from bench.simulator.edge import Answer
from gateway.steady.pacer import Pacer


def steadied(answer: Answer) -> Answer:
    """Return the answer as it reaches a client that asked for a steady stream."""
    shown = groupby(_shown(answer.arrivals))
    return replace(answer, arrivals=[(at_s, len(list(tokens))) for at_s, tokens in shown])


def _shown(arrivals: Sequence[tuple[float, int]]) -> Iterator[float]:
    """Yield when each token is shown, in seconds from asking."""
    pacer = Pacer[None](lambda _: True)
    for arrived_s, count in arrivals:
        while (due_s := pacer.due_s) is not None and due_s < arrived_s:
            yield from (due_s for _ in pacer.due(due_s))
        yield from (arrived_s for _ in pacer.add([None] * count, arrived_s))
    yield from (arrivals[-1][0] for _ in pacer.flush())
