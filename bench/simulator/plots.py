"""The plots of bench.simulator.predict, as PNG files. They need matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure

from bench.simulator.capacity import Crowd
from bench.simulator.table import SimulatedRow, speedups

DPI = 90


def draw(
    cells: Mapping[tuple[str, float], Sequence[SimulatedRow]],
    crowds: Sequence[Crowd],
    folder: Path,
) -> list[Path]:
    """Write the plots and return their files. cells: by operating point and temperature."""
    drawn = {"predicted-speedup": _predicted(cells), "predicted-capacity": _capacity(crowds)}
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=DPI)
        pyplot.close(figure)
    return files


def _predicted(cells: Mapping[tuple[str, float], Sequence[SimulatedRow]]) -> Figure:
    """Draw temperatures down, operating points across; lines are means over families."""
    points = list(dict.fromkeys(point for point, _ in cells))
    heats = list(dict.fromkeys(heat for _, heat in cells))
    figure, axes = pyplot.subplots(
        len(heats), len(points), figsize=(11.0, 3.0 * len(heats)), sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (point, heat), found in cells.items():
        axis = axes[heats.index(heat)][points.index(point)]
        for (arm, family), values in speedups(found).items():
            if family == "all":
                axis.plot(list(values), list(values.values()), label=arm, marker=".")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set(title=f"{point}, T = {heat:g}", xlabel="RTT, ms")
    for line in axes:
        line[0].set(ylabel="speed-up over cloud (simulated)", ylim=(0, None))
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    return figure


def _capacity(crowds: Sequence[Crowd]) -> Figure:
    points = list(dict.fromkeys(crowd.point for crowd in crowds))
    figure, axes = pyplot.subplots(
        1, len(points), figsize=(11.0, 3.2), squeeze=False, layout="constrained"
    )
    for axis, point in zip(axes[0], points, strict=True):
        for arm in dict.fromkeys(crowd.arm for crowd in crowds):
            own = [c for c in crowds if (c.point, c.arm) == (point, arm)]
            rates = [c.tokens_per_s for c in own]
            axis.plot([c.clients for c in own], rates, label=arm, marker=".")
        axis.set(title=point, xlabel="clients of one verifier", ylim=(0, None))
    axes[0][0].set_ylabel("tokens/s of each (simulated)")
    axes[0][0].legend(fontsize="small")
    return figure
