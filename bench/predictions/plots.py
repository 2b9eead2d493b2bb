"""The plots of bench.predictions, as PNG files. They need matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure

from picospec.bench.simulator.capacity import Crowd
from picospec.bench.simulator.table import SimulatedRow, speedups

DPI = 90

Panels = Mapping[tuple[str, str], Mapping[str, Mapping[float, float]]]
"""By row and column of the figure it says what each arm has at each place of the horizontal
axis."""


def draw(
    cells: Mapping[tuple[str, float], Sequence[SimulatedRow]],
    crowds: Sequence[Crowd],
    folder: Path,
) -> list[Path]:
    """Write the plots and return their files. cells: by operating point and temperature."""
    means: Panels = {
        (f"T = {heat:g}", point): {
            "cloud": dict.fromkeys((row.rtt_ms for row in found), 1.0),
            **{arm: of for (arm, family), of in speedups(found).items() if family == "all"},
        }
        for (point, heat), found in cells.items()
    }
    rates: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for c in crowds:
        by_arm = rates.setdefault(("", c.point), {})
        by_arm.setdefault(c.arm, {})[c.clients] = c.tokens_per_s
    drawn = {
        "predicted-speedup": _panels(means, "RTT, ms", "speed-up over cloud (simulated)"),
        "predicted-capacity": _panels(
            rates, "clients of one verifier", "tokens/s of each (simulated)"
        ),
    }
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=DPI)
        pyplot.close(figure)
    return files


def _panels(panels: Panels, across: str, up: str) -> Figure:
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure, axes = pyplot.subplots(
        len(rows), len(columns), figsize=(11.0, 3.2 * len(rows)), sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (row, column), lines in panels.items():
        axis = axes[rows.index(row)][columns.index(column)]
        for arm, values in lines.items():
            axis.plot(list(values), list(values.values()), label=arm, marker=".")
        axis.set(title=", ".join(filter(None, (column, row))), xlabel=across)
    for first, *_ in axes:
        first.set(ylabel=up, ylim=(0, None))
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    return figure
