"""Tests of the verifier begin with these sessions and machines, and run passes on them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

import numpy as np

from speculation.distributions import Q_SCALE, Distribution
from speculation.judge import Judgement, Rejection
from speculation.latency import PassLatency
from speculation.messages import Down, Draft, Open, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.verify_machine import PassRecord, Verdict, VerifyMachine
from speculation.verify_session import Pass, VerifyingSession

V = 10**6
P = Distribution(np.array([1, 2, 3]), np.array([0.5, 0.25, 0.25]))
LIMITS = Limits(max_verify=4, max_ahead=8)
FLAT = [10.0] * 9
"""T(1) to T(9): passes are slow, and more rows cost nothing."""


def latency(*seconds: float) -> PassLatency:
    """Return what is known after one pass of each size took T(1), T(2), ..."""
    learned = PassLatency()
    for rows, taken in enumerate(seconds, 1):
        learned.observe(rows, taken)
    return learned


def opening(judge: str = "coupled", **changes: object) -> Open:
    fields = {"prompt": (1,), "max_tokens": 50, "stop_tokens": (99,), "judge": judge}
    return Open("m", "v", sampling=Sampling(), seed=0, **{**fields, **changes})  # type: ignore[arg-type]


def session(
    judge: str = "coupled", *, limits: Limits = LIMITS, **changes: object
) -> VerifyingSession:
    request = opening(judge, **changes)
    return VerifyingSession(request, limits, vocabulary_size=V, u=repeat(0.5))


def begin(verifier: VerifyingSession, most: int = 16) -> Pass:
    """Begin a pass over as many draft tokens as it may have, at most `most`."""
    return verifier.begin(len(verifier.plan(most)))


def generate(verifier: VerifyingSession, *tokens: TokenId, accepted: int = 0) -> list[Any]:
    """Run a pass that generates these tokens."""
    begin(verifier)
    return verifier.resolve(Judgement(tokens, accepted))


def rejecting(*committed: TokenId) -> VerifyingSession:
    """A `separate` session that awaits the recovered token for token 1 after `committed`."""
    verifier = session("separate")
    for token in committed:
        generate(verifier, token)
    verifier.receive(Draft(0, len(committed), 0, (1,), (Q_SCALE,)))
    begin(verifier)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))
    return verifier


def state(verifier: VerifyingSession) -> str:
    parts = {"chain": vars(verifier.chain), "_judge": vars(verifier._judge)}
    return repr({**vars(verifier), **parts})


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
    verifier: VerifyMachine, name: str, *tokens: TokenId, now: float, rows: int | None = None
) -> list[Down]:
    """Run a pass of one second that generates these tokens; return what the session sends."""
    drafts = len(verifier.offer([name], now, rows=100, without_drafts=[name]).start[name])
    plan = verifier.begin({name: drafts}, now)
    record = PassRecord(rows) if rows else None
    return verifier.ran(plan, {name: Verdict(Judgement(tokens, 0))}, now + 1.0, record)[name]


def snapshot(verifier: VerifyMachine) -> str:
    sessions = [
        (name, state(held.session), held.arrivals, held.passed_at)
        for name, held in verifier._sessions.items()
    ]
    kinds = verifier.latency._sizes.values()
    sizes = [{rows: list(size._recent_s) for rows, size in kind.items()} for kind in kinds]
    return repr((sessions, sizes))


def expecting(*names: str) -> VerifyMachine:
    """Sessions with two draft tokens each, that sent one at 0 s and one at 1 s; the next is due
    at 2 s, and worth waiting for up to 4 s."""
    verifier = machine(latency(*FLAT), **dict.fromkeys(names, "auto"))
    for name in names:
        verifier.received(name, Draft(0, 0, 0, (0,)), arrived=0.0)
        verifier.received(name, Draft(0, 1, 1, (1,)), arrived=1.0)
    return verifier
