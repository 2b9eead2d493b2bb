"""How often a coupled draft is right, against the best any exact method can do.

    python -m bench.acceptance TRACES

Optimal rejection sampling accepts with probability sum(min(p, q)), on average; no exact way to
use one draft token does better. Coupling is estimated on the same positions, over many seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.prompts import sampling
from bench.simulator.source import dense
from bench.traces import Trace
from edge_agent.guessing import COUPLED_TOKENS, SHARPNESS
from speculation.laws import Law, law

SEEDS = 16


def coupled(trace: Trace, position: int, sharpness: float, seeds: Sequence[int]) -> float:
    """Return the share of seeds for which draft and target say the same."""
    drawn = sampling(trace.temperature)
    p = law(dense(trace.target_tokens[position], trace.target_logits[position]), drawn)
    q = law(
        dense(trace.draft_tokens[position], trace.draft_logits[position]),
        drawn,
        most=COUPLED_TOKENS,
    )
    sharp = Law(q.tokens, q.p**sharpness)
    same = [p.coupled(seed, position) == sharp.coupled(seed, position) for seed in seeds]
    return float(np.mean(same))


def table(traces: Sequence[Trace]) -> dict[str, NDArray[np.float64]]:
    """Return for each family, and for all: optimal, coupled as q, coupled sharpened."""
    rows = defaultdict(list)
    for trace in traces:
        for position in range(len(trace.tokens)):
            seeds = range(position * SEEDS, (position + 1) * SEEDS)
            plain = coupled(trace, position, 1.0, seeds)
            sharp = coupled(trace, position, SHARPNESS, seeds)
            rows[trace.family].append((trace.overlap[position], plain, sharp))
    rows["all"] = [row for family in list(rows.values()) for row in family]
    return {family: np.mean(found, axis=0) for family, found in rows.items()}


def main(traces: Annotated[Path, typer.Argument(help="Folder of recorded traces.")]) -> None:
    """Print acceptance by family."""
    loaded = [Trace.load(path) for path in sorted(traces.glob("*.npz"))]
    shown = Table("family", "optimal", "coupled", f"coupled, q^{SHARPNESS}")
    for family, values in table([t for t in loaded if t.temperature > 0.0]).items():
        shown.add_row(family, *(f"{value:.3f}" for value in values))
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
