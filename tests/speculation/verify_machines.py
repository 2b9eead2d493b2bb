"""Verifier's machines with sessions, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol.messages import (
    Down,
    Draft,
)
from picospec.speculation.verifying.latency import PassLatency
from picospec.speculation.verifying.machine import Verdict, VerifyMachine
from tests.speculation.latencies import latency
from tests.speculation.verify_sessions import LIMITS, V, opening, state

FLAT = [10.0] * 9
"""T(1) to T(9): passes are slow, and more rows cost nothing."""


def counting() -> Iterator[float]:
    """Uniforms that tell how many were taken before."""
    return (n / 1000 for n in count())


def machine(learned: PassLatency | None = None, **fills: str) -> VerifyMachine:
    """A machine with sessions of these fills, opened at 0 s."""
    verifier = VerifyMachine(counting(), learned)
    for name, fill in fills.items():
        open_(verifier, name, fill=fill)
    return verifier


def open_(
    verifier: VerifyMachine, name: str, judge: str = "coupled", **changes: object
) -> None:
    request = opening(judge, **changes)
    verifier.open(name, request, LIMITS, vocabulary_size=V, now=0.0)


def run(
    verifier: VerifyMachine, name: str, *tokens: int, now: float, rows: int | None = None
) -> list[Down]:
    """Run a pass of one second that generates these tokens; return what the session sends."""
    drafts = len(verifier.offer([name], now, rows=100, without_drafts=[name]).start[name])
    plan = verifier.begin({name: drafts}, now)
    return verifier.ran(plan, {name: Verdict(Judgement(tokens, 0))}, now + 1.0, rows=rows)[name]


def snapshot(verifier: VerifyMachine) -> str:
    sessions = [
        (name, state(held.session), held.arrivals, held.passed_at)
        for name, held in verifier._sessions.items()
    ]
    sizes = {rows: list(size._recent_s) for rows, size in verifier.latency._sizes.items()}
    return repr((sessions, sizes))


def expecting(*names: str, fill: str = "auto") -> VerifyMachine:
    """Sessions with two draft tokens each, that sent one at 0 s and one at 1 s; the next is due
    at 2 s, and worth waiting for up to 4 s."""
    verifier = machine(latency(*FLAT), **dict.fromkeys(names, fill))
    for name in names:
        verifier.received(name, Draft(0, 0, 0, (0,)), arrived=0.0)
        verifier.received(name, Draft(0, 1, 1, (1,)), arrived=1.0)
    return verifier
