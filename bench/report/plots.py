"""A report's plot, as a PNG file. It needs matplotlib (extra `bench`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from picospec.bench.data.results import Results
from picospec.bench.report.speedups import Comparison

SIZE_IN = (9.0, 4.5)
DPI = 130


def draw(results: Results, file: Path) -> None:
    """Write the plot of the first temperature: speed-ups over distance, by family."""
    compared = Comparison(results, results.answers[0].temperature)
    families = compared.families
    figure, axes = pyplot.subplots(
        1, len(families), figsize=SIZE_IN, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, family in zip(axes[0], families, strict=True):
        for arm in compared.arms:
            if arm != "cloud":
                _line(axis, compared, arm, family)
        axis.set(title=family, xlabel="RTT, ms")
        axis.axhline(1.0, color="grey", linewidth=0.8)
    axes[0][0].set_ylabel("speed-up over cloud")
    axes[0][-1].legend(fontsize="small")
    figure.savefig(file, dpi=DPI)
    pyplot.close(figure)


def _line(axis: Axes, compared: Comparison, arm: str, family: str) -> None:
    """Draw one arm over the links that have the first one's rate."""
    links = [link for link in compared.links if link[1] == compared.links[0][1]]
    found = [
        (rtt_ms, compared.speedup(arm, (rtt_ms, rate), [family])) for rtt_ms, rate in links
    ]
    points = [(rtt_ms, value) for rtt_ms, value in found if value is not None]
    if not points:
        return
    values = np.array([value.value for _, value in points])
    low = values - [value.low or value.value for _, value in points]
    high = [value.high or value.value for _, value in points] - values
    rtts_ms = [rtt_ms for rtt_ms, _ in points]
    axis.errorbar(rtts_ms, values, [low, high], label=arm, marker="o", capsize=3)
