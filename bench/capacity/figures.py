"""Computes figures of a verifier with many clients at once, measured or simulated."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import msgspec
import numpy as np

from picospec.bench.data.host import Host
from picospec.bench.data.tables import markdown
from picospec.bench.simulator.arms import Arm
from picospec.bench.simulator.edge import Answer
from picospec.bench.simulator.source import Source
from picospec.bench.simulator.world import World, simulate
from picospec.speculation.messages import TokenId


@dataclass(frozen=True, slots=True)
class Answered:
    """An Answered measures one answer. All times are seconds on one clock."""

    asked_s: float
    ended_s: float
    arrivals_s: Sequence[float]
    tokens: int
    passes: int
    scripted: int
    """This many first tokens are the trace's; all draft tokens after them are wrong."""

    text: Sequence[TokenId] = ()
    """These are a session's tokens; a plain answer's are not recorded."""


class Figures(msgspec.Struct, frozen=True):
    tokens_per_s: float
    """All clients together have this rate, from the first request to the last answer's end."""

    slowest_tokens_per_s: float
    """The slowest client has this rate over all its answers."""

    passes_per_token: float
    gap_ms_p50: float
    gap_ms_p95: float
    scripted_share: float
    """This share of the tokens is the trace's."""


class Row(msgspec.Struct, frozen=True):
    """A Row has the figures of one load."""

    sessions: int
    arm: str
    measured: Figures
    predicted: Figures | None
    pass_rows: float
    """A pass has this many rows on average, those of all its sessions together."""

    pass_ms: float
    busy_share: float
    """Clients and link used this share of one core. Near 1 they are the bottleneck."""


class Capacity(msgspec.Struct, frozen=True):
    """A results file has this content."""

    host: Host
    commit: str
    models: dict[str, str]
    settings: dict[str, str | float]
    rows: list[Row]


def figures(clients: Sequence[Sequence[Answered]]) -> Figures:
    """Return the figures of all answers. clients: the answers of each client, in order."""
    answers = [answer for own in clients for answer in own]
    seconds = max(a.ended_s for a in answers) - min(a.asked_s for a in answers)
    tokens, passes = sum(a.tokens for a in answers), sum(a.passes for a in answers)
    rates = [sum(a.tokens for a in own) / (own[-1].ended_s - own[0].asked_s) for own in clients]
    gaps_ms = [1000 * gap for a in answers for gap in np.diff(a.arrivals_s)] or [0.0]
    p50_ms, p95_ms = map(float, np.percentile(gaps_ms, (50, 95)))
    followed = sum(a.scripted for a in answers) / tokens
    return Figures(tokens / seconds, min(rates), passes / tokens, p50_ms, p95_ms, followed)


def predict(world: World, arm: Arm, clients: Sequence[Sequence[Source]]) -> Figures:
    """Return the simulator's figures for clients that ask for these sources."""
    asked = [[copy(source) for source in own] for own in clients]  # one copy for each answer
    found = {id(answer.source): answer for answer in simulate(world, arm, asked)}
    return figures([[_answered(found[id(source)]) for source in own] for own in asked])


def _answered(answer: Answer) -> Answered:
    asked_s, tokens = answer.asked_s, answer.tokens
    arrivals_s = [asked_s + since_s for since_s, _ in answer.arrivals]
    return Answered(asked_s, arrivals_s[-1], arrivals_s, tokens, answer.target_passes, tokens)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each load."""
    cloud = {row.sessions: row.measured for row in rows if row.arm == "cloud"}
    head = (
        "sessions", "arm", "tokens/s", "/ `cloud`", "slowest", "/ `cloud`", "passes/token",
        "rows, ms a pass", "gap p50, p95, ms", "predicted", "/ measured", "slowest / measured",
    )  # fmt: skip
    return markdown(head, [_line(row, cloud.get(row.sessions)) for row in rows])


def _line(row: Row, cloud: Figures | None) -> list[str]:
    own, predicted = row.measured, row.predicted
    more, slowest = _ratios(own, cloud)
    return [
        f"{row.sessions}", f"`{row.arm}`",
        f"{own.tokens_per_s:.1f}", more, f"{own.slowest_tokens_per_s:.2f}", slowest,
        f"{own.passes_per_token:.2f}", f"{row.pass_rows:.1f}, {row.pass_ms:.0f}",
        f"{own.gap_ms_p50:.0f}, {own.gap_ms_p95:.0f}",
        f"{predicted.tokens_per_s:.1f}" if predicted else "", *_ratios(predicted, own),
    ]  # fmt: skip


def _ratios(one: Figures | None, other: Figures | None) -> tuple[str, str]:
    """Return the ratio of the total rates, and that of the slowest clients' rates."""
    if one is None or other is None:
        return "", ""
    slowest = one.slowest_tokens_per_s / other.slowest_tokens_per_s
    return f"{one.tokens_per_s / other.tokens_per_s:.2f}", f"{slowest:.2f}"
