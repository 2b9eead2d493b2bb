"""Runs whole simulations.

A simulation has clients with devices and links, one verifier, and one arm. The arms are the
compared systems (see docs/performance.md), which differ in a few things.
`colocated` is `sync` on the target's host: no link, but drafting takes the target's time.
Hosts, link, prompts and the head start while the target reads the prompt are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random

from bench.link import Conditions
from bench.link import Path as LinkPath
from bench.run.round_policy import RoundPolicy
from bench.simulator.acespec import CachingEdge, branches_by_depth
from bench.simulator.clock import Clock, Deliver, Line
from bench.simulator.edge import Answer, Edge
from bench.simulator.hosts import Curve, Hosts, World
from bench.simulator.rivals import Engine, Speculation
from bench.simulator.source import Source
from bench.simulator.verifier import Served, Verifier
from speculation.answer_cache import AnswerCache, Owner
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import DraftPolicy, StreamPolicy
from speculation.judges import JUDGES
from speculation.lookup import PromptLookup
from speculation.messages import Fill, Open, Sampling
from speculation.speedup import SpeedupEstimates


@dataclass(frozen=True, slots=True)
class Arm:
    """An Arm is a compared system; by default the target alone."""

    name: str = "cloud"
    fill: Fill = "always"
    policy: DraftPolicy | None = None
    """The edge drafts by this policy; None drafts nothing."""

    ngram_drafts: bool = False
    """True if the verifier proposes draft tokens too."""

    lookup: bool = False
    """True if prompt lookup proposes tokens too."""

    answer_cache_tokens: int = 0
    """The edge keeps this many tokens of each client's answers; 0 without a cache."""

    rival: Speculation | None = None
    """The target runs in vLLM alone, with this speculation; see bench.simulator.rivals."""

    gamma: int = 0
    """A round has this many draft tokens; 0 without rounds."""

    branches: int = 0
    """This many branches are drafted beside the chain while a round is away; see
    bench.simulator.acespec."""

    colocated: bool = False
    """True if the draft model runs on the target's host."""


def _rounds(name: str, gamma: int, branches: int = 0) -> Arm:
    policy = RoundPolicy(gamma, overlaps=name in ("paper", "acespec"))
    at_target = name == "colocated"
    return Arm(name, "never", policy, gamma=gamma, branches=branches, colocated=at_target)


sync = partial(_rounds, "sync")
"""Vanilla speculation drafts `gamma` tokens a round."""

paper = partial(_rounds, "paper")
"""This is PicoSpec as published; see bench.run.round_policy."""

acespec = partial(_rounds, "acespec")
"""This is `paper` with a cache of branches; see bench.simulator.acespec."""

colocated = partial(_rounds, "colocated")
"""This is `sync` with the draft model on the target's host."""


def picospec(
    name: str = "picospec", *, fill: Fill = "auto", ngram_drafts: bool = True,
    lookup: bool = True,
) -> Arm:  # fmt: skip
    """Return this product, with or without one of its parts."""
    own = ngram_drafts and fill == "auto"
    return Arm(name, fill, StreamPolicy(may_pause=fill != "never"), own, lookup)


def simulate(world: World, arm: Arm, clients: Sequence[Sequence[Source]]) -> list[Answer]:
    """Return every answer. Each client asks for its sources one by one, beginning at time 0."""
    if arm.rival is None:
        return Simulation(world, arm).run(clients)
    clock, paths = Clock(), partial(LinkPath, world.conditions, Random(0))
    engine = Engine(clock, world, arm.rival)
    for sources in clients:
        engine.ask(sources, paths)
    clock.run()
    return engine.answers


class Simulation:
    """A Simulation runs one arm's clients in a world."""

    def __init__(self, world: World, arm: Arm) -> None:
        self.clock = Clock()
        self.answers: list[Answer] = []
        self._world, self._arm = world, arm
        self._hosts = _as_used(world.hosts, arm)
        self._conditions = Conditions() if arm.colocated else world.conditions
        self._chance = Random(0)  # for the link's jitter and losses
        self._names = count()
        there = replace(world, hosts=self._hosts)
        self._verifier = Verifier(self.clock, there, colocated=arm.colocated)

    def run(self, clients: Sequence[Sequence[Source]]) -> list[Answer]:
        """Return every answer. Each client asks for its sources one by one."""
        tokens = self._arm.answer_cache_tokens
        for sources in clients:
            answer_cache = AnswerCache(tokens) if tokens else None
            self._ask(list(sources), answer_cache, SpeedupEstimates())
        self.clock.run()
        return self.answers

    def line(self, path: LinkPath, deliver: Deliver) -> Line:
        """Return one direction of a client's link."""
        return Line(self.clock, path, deliver)

    def _ask(
        self, left: list[Source], answer_cache: AnswerCache | None, speedups: SpeedupEstimates
    ) -> None:
        """Ask for one source after another. cache: the client's earlier answers. speedups: what
        draft tokens have earned before."""
        if not left:
            return
        arm, (source, *rest) = self._arm, left
        up, down = (LinkPath(self._conditions, self._chance) for _ in range(2))
        kept = answer_cache.expected(source.prompt, len(source.tokens)) if answer_cache else ()
        request = Open(
            model="target", vocabulary="", prompt=source.prompt, sampling=Sampling(), seed=0,
            max_tokens=len(source.tokens), stop_tokens=(), fill=arm.fill,
            ngram_drafts=arm.ngram_drafts, predicted=source.predicted or kept,
        )  # fmt: skip

        def done() -> None:
            edge.answer.bytes_up, edge.answer.bytes_down = up.bytes, down.bytes
            self.answers.append(edge.answer)
            if answer_cache is not None:
                answer_cache.add(source.prompt, source.tokens)
            edge.machine.close()
            self._ask(rest, answer_cache, speedups)

        lookup = PromptLookup(request.prompt, answer_cache=answer_cache) if arm.lookup else None
        machine = DraftMachine(
            request, arm.policy or StreamPolicy(), self._world.limits,
            JUDGES[request.judge].edge(request, iter(())),
            rtt_s=lambda: self._conditions.rtt_s, drafts=arm.policy is not None, lookup=lookup,
            speedups=(lambda: speedups) if arm.fill == "auto" else None,
        )  # fmt: skip
        make: Callable[..., Edge] = Edge
        if arm.branches:
            branches = branches_by_depth(arm.branches, arm.gamma, source.acceptance)
            make = partial(CachingEdge, branches=branches)
        edge = make(self.clock, source, machine, self._hosts.draft_s, done)
        owner = Owner(str(id(answer_cache))) if answer_cache is not None else None
        downlink = self.line(down, edge.receive)
        served = Served(str(next(self._names)), source, downlink, owner)
        edge.uplink = self.line(up, partial(self._verifier.receive, served))
        edge.uplink.send(request)
        edge.start(self._hosts.draft_prefill_s * len(source.prompt))


def _as_used(hosts: Hosts, arm: Arm) -> Hosts:
    """Return the speeds of both ends for this arm. Passes of a colocated arm include the draft
    model's gamma steps for all sessions, each of which has gamma + 1 rows."""
    if not arm.colocated:
        return hosts
    pass_s = hosts.pass_s.plus(arm.gamma * hosts.draft_s.of(1))
    return replace(hosts, pass_s=pass_s, draft_s=Curve({1: 0.0}))
