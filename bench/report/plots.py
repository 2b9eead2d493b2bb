"""A report's plots, as PNG files. They need matplotlib (extra `bench`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.data.results import Results
from bench.report.speedups import Comparison, Link

SIZE_IN = (9.0, 4.5)
DPI = 130


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Write the plots of the first temperature; return their files."""
    compared = Comparison(results, results.answers[0].temperature)
    drawn = {
        "speedup": _speedup(compared),
        "bytes": _per_token(compared, "bytes per token", "link_bytes_up", "link_bytes_down"),
        "passes": _per_token(compared, "target passes per token", "target_passes"),
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
        for arm in compared.arms:
            if arm != "cloud":
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


def _per_token(compared: Comparison, title: str, *fields: str) -> Figure:
    """Draw the sum of some fields per token as bars: an arm a group, a link a colour."""
    figure, axis = pyplot.subplots(figsize=SIZE_IN, layout="constrained")
    links = _ideal(compared)
    for place, link in enumerate(links):
        heights = [_ratio(compared, arm, link, fields) for arm in compared.arms]
        across = np.arange(len(heights)) + place / (len(links) + 1)
        axis.bar(across, heights, 1 / (len(links) + 1), label=f"{link[0]:g} ms")
    axis.set_xticks(np.arange(len(compared.arms)), compared.arms, rotation=20)
    axis.set_ylabel(title)
    axis.legend(title="RTT")
    return figure


def _ratio(compared: Comparison, arm: str, link: Link, fields: tuple[str, ...]) -> float:
    answers = compared.of(arm, link)
    total = sum(getattr(answer, field) for answer in answers for field in fields)
    return total / sum(answer.tokens for answer in answers) if answers else 0.0


def _gaps(compared: Comparison) -> Figure:
    """Draw the share of gaps longer than so many milliseconds, over the last link."""
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
