"""A report's plots, as PNG files. The only file that imports matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.results import Answer, Results
from bench.report.speedups import Comparison, Link
from bench.simulator.predict import Crowd
from bench.simulator.table import Row, speedups

SIZE_IN = (9.0, 4.5)
DPI = 130
DPI_SMALL = 90

Measure = Callable[[Sequence[Answer]], float]


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Write the plots of the first temperature; return their files."""
    compared = Comparison(results, results.answers[0].temperature)
    drawn = {
        "speedup": _speedup(compared),
        "bytes": _per_token(compared, "bytes per token", _bytes),
        "passes": _per_token(compared, "target passes per token", _passes),
        "gaps": _gaps(compared),
    }
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{stem}-{name}.png")
        figure.savefig(files[-1], dpi=DPI)
        pyplot.close(figure)
    return files


def _speedup(compared: Comparison) -> Figure:
    families = compared.families
    figure, axes = pyplot.subplots(
        1, len(families), figsize=SIZE_IN, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, family in zip(axes[0], families, strict=True):
        for arm in _faster(compared):
            _line(axis, compared, arm, family)
        axis.set(title=family, xlabel="RTT, ms")
        axis.axhline(1.0, color="grey", linewidth=0.8)
    axes[0][0].set_ylabel("speed-up over cloud")
    axes[0][-1].legend(fontsize="small")
    return figure


def _line(axis: Axes, compared: Comparison, arm: str, family: str) -> None:
    found = [(link[0], compared.speedup(arm, link, [family])) for link in _ideal(compared)]
    points = [(rtt_ms, value) for rtt_ms, value in found if value is not None]
    if not points:
        return
    values = np.array([value.value for _, value in points])
    low = values - [value.low or value.value for _, value in points]
    high = [value.high or value.value for _, value in points] - values
    rtts_ms = [rtt_ms for rtt_ms, _ in points]
    axis.errorbar(rtts_ms, values, [low, high], label=arm, marker="o", capsize=3)


def _ideal(compared: Comparison) -> list[Link]:
    """Return the links that have the first one's rate."""
    return [link for link in compared.links if link[1] == compared.links[0][1]]


def _faster(compared: Comparison) -> list[str]:
    return [arm for arm in compared.arms if arm != "cloud"]


def _per_token(compared: Comparison, title: str, of: Measure) -> Figure:
    """Bars: an arm a group, a link a colour."""
    figure, axis = pyplot.subplots(figsize=SIZE_IN, layout="constrained")
    links = _ideal(compared)
    for place, link in enumerate(links):
        heights = [of(compared.of(arm, link)) for arm in compared.arms]
        across = np.arange(len(heights)) + place / (len(links) + 1)
        axis.bar(across, heights, 1 / (len(links) + 1), label=f"{link[0]:g} ms")
    axis.set_xticks(np.arange(len(compared.arms)), compared.arms, rotation=20)
    axis.set_ylabel(title)
    axis.legend(title="RTT")
    return figure


def _bytes(answers: Sequence[Answer]) -> float:
    """Both directions, as TCP carried them."""
    return _over_tokens(sum(a.link_bytes_up + a.link_bytes_down for a in answers), answers)


def _passes(answers: Sequence[Answer]) -> float:
    return _over_tokens(sum(a.target_passes for a in answers), answers)


def _over_tokens(total: float, answers: Sequence[Answer]) -> float:
    return total / sum(a.tokens for a in answers) if answers else 0.0


def _gaps(compared: Comparison) -> Figure:
    """The share of gaps that are longer than so many milliseconds, over the last link."""
    figure, axis = pyplot.subplots(figsize=SIZE_IN, layout="constrained")
    for arm in compared.arms:
        answers = compared.of(arm, compared.links[-1]) or compared.of(arm, compared.links[0])
        gaps_ms = np.sort([gap for a in answers for gap in a.gaps_ms])
        if len(gaps_ms):
            axis.step(gaps_ms, 1.0 - np.arange(1, len(gaps_ms) + 1) / len(gaps_ms), label=arm)
    axis.set(xlabel="gap between two arrivals of text, ms", ylabel="share of longer gaps")
    axis.set_yscale("symlog", linthresh=0.01)
    axis.legend(fontsize="small")
    return figure


def draw_predictions(
    cells: Mapping[tuple[str, float], Sequence[Row]], crowds: Sequence[Crowd], folder: Path
) -> list[Path]:
    """Write the plots of bench.simulator.predict; return their files. cells: by point and temperature."""
    drawn = {"predicted-speedup": _predicted(cells), "predicted-capacity": _capacity(crowds)}
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=DPI_SMALL)
        pyplot.close(figure)
    return files


def _predicted(cells: Mapping[tuple[str, float], Sequence[Row]]) -> Figure:
    """Temperatures down, operating points across; lines are means over families."""
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
