"""Draws speed-ups as a PNG: panels with a line for each arm. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.statistics import Mean

DPI = 110

Curves = Mapping[str, Mapping[float, Mean]]
"""Maps an arm to its value at each place of the horizontal axis."""


def draw(file: Path, panels: Mapping[str, Curves]) -> None:
    """Write a plot of speed-ups over RTT. panels: by their titles. Raises ImportError without
    matplotlib."""
    import matplotlib

    matplotlib.use("Agg")

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(11.0, 4.2), sharey="row", squeeze=False, layout="constrained"
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for arm, means in lines.items():
            values = [mean.value for mean in means.values()]
            low = [mean.value - (mean.low or mean.value) for mean in means.values()]
            high = [(mean.high or mean.value) - mean.value for mean in means.values()]
            axis.errorbar(list(means), values, [low, high], label=arm, marker=".")
        axis.set(title=title, xlabel="RTT, ms")
    axes[0][0].set(ylabel="speed-up over cloud", ylim=(0, None))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.savefig(file, dpi=DPI)
    pyplot.close(figure)
