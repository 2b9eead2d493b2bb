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

from bench.run.prompts import sampling
from bench.simulator.source import dense
from bench.traces.files import Trace
from speculation.sampling.distributions import Distribution, distribution
from speculation.sampling.draft_sampler import COUPLED_TOKENS, SHARPNESS

SEEDS = 16


def distributions(trace: Trace, position: int) -> tuple[Distribution, Distribution]:
    """Return (p, q) at a position."""
    drawn = sampling(trace.temperature)
    target = dense(trace.target_tokens[position], trace.target_logits[position])
    draft = dense(trace.draft_tokens[position], trace.draft_logits[position])
    return distribution(target, drawn), distribution(draft, drawn, most=COUPLED_TOKENS)


def agreement(p: Distribution, q: Distribution, position: int) -> float:
    """Return the share of SEEDS seeds, others at each position, for which both say the same."""
    seeds = range(position * SEEDS, (position + 1) * SEEDS)
    return float(
        np.mean([p.coupled(seed, position) == q.coupled(seed, position) for seed in seeds])
    )


def table(traces: Sequence[Trace]) -> dict[str, NDArray[np.float64]]:
    """Return for each family, and for all: optimal, coupled as q, coupled sharpened."""
    rows = defaultdict(list)
    for trace in traces:
        for position, optimal in enumerate(trace.overlap):
            p, q = distributions(trace, position)
            sharp = Distribution(q.tokens, q.p**SHARPNESS)
            shares = agreement(p, q, position), agreement(p, sharp, position)
            rows[trace.family].append((optimal, *shares))
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
