"""Draws PNG plots: panels with a line for each arm. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.statistics import Mean

if TYPE_CHECKING:
    pass


DPI = 110

Curves = Mapping[str, Mapping[float, Mean]]
"""Maps an arm to its value at each place of the horizontal axis."""


def draw(file: Path, panels: Mapping[tuple[str, str], Curves], across: str, up: str) -> None:
    """Write a plot. panels: keyed by row and column of the figure. Raises ImportError without
    matplotlib."""
    import matplotlib

    matplotlib.use("Agg")

    from matplotlib import pyplot

    rows, columns = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure, axes = pyplot.subplots(
        len(rows), len(columns), figsize=(11.0, 1.0 + 3.2 * len(rows)), sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (row, column), lines in panels.items():
        axis = axes[rows.index(row)][columns.index(column)]
        for arm, means in lines.items():
            values = [mean.value for mean in means.values()]
            low = [mean.value - (mean.low or mean.value) for mean in means.values()]
            high = [(mean.high or mean.value) - mean.value for mean in means.values()]
            axis.errorbar(list(means), values, [low, high], label=arm, marker=".")
        axis.set(title=", ".join(filter(None, (column, row))), xlabel=across)
    for first, *_ in axes:
        first.set(ylabel=up, ylim=(0, None))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.savefig(file, dpi=DPI)
    pyplot.close(figure)
