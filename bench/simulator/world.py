"""Runs whole simulations, and compares arms by them, each at its best gamma.

A simulation has clients with devices and links, one verifier, and one arm. The arms are the
compared systems (see docs/performance.md), which differ in a few things.
`colocated` is `sync` on the target's host: no link, but drafting takes the target's time.
Hosts, link, prompts and the head start while the target reads the prompt are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, groupby
from pathlib import Path
from random import Random
from typing import Final

from bench.prompts import root
from bench.results import Cell, figures
from bench.run.rounds import RoundPolicy
from bench.simulator.ends import Answer, Edge, Served, Verifier
from bench.simulator.hosts import Clock, Curve, Hosts, Line
from bench.simulator.rivals import CachingEdge, Engine, Speculation, ask
from bench.simulator.source import Source, traced
from bench.statistics import gap_ms, geometric_mean
from bench.traces import load_folder
from picospec.link import Conditions
from picospec.link import Path as LinkPath
from speculation.answer_cache import AnswerCache, Owner
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import DraftPolicy, StreamPolicy
from speculation.judges import JUDGES
from speculation.lookup import PromptLookup
from speculation.messages import Fill, Limits, Open, Sampling
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
    bench.simulator.rivals."""

    colocated: bool = False
    """True if the draft model runs on the target's host."""

    waits: bool = False
    """True if the target is idle while the draft model works."""


def sync(gamma: int) -> Arm:
    """Return vanilla speculation with `gamma` draft tokens a round."""
    return Arm("sync", "never", RoundPolicy(gamma), gamma=gamma, waits=True)


def paper(gamma: int) -> Arm:
    """Return PicoSpec as published; see bench.run.rounds."""
    return Arm("paper", "never", RoundPolicy(gamma, overlaps=True), gamma=gamma)


def acespec(gamma: int, branches: int) -> Arm:
    """Return `paper` with a cache of branches; see bench.simulator.rivals."""
    return replace(paper(gamma), name="acespec", branches=branches)


def colocated(gamma: int) -> Arm:
    """Return vanilla speculation with the draft model on the target's host."""
    policy = RoundPolicy(gamma)
    return Arm("colocated", "never", policy, gamma=gamma, colocated=True, waits=True)


def picospec(
    name: str = "picospec",
    *,
    fill: Fill = "auto",
    ngram_drafts: bool = True,
    lookup: bool = True,
) -> Arm:
    """Return this product, with or without one of its parts."""
    own = ngram_drafts and fill == "auto"
    return Arm(name, fill, StreamPolicy(may_pause=fill != "never"), own, lookup)


@dataclass(frozen=True, slots=True)
class World:
    hosts: Hosts
    conditions: Conditions
    limits: Limits = field(default_factory=Limits)
    rows: int = 256
    """One pass has at most this many rows."""

    others: int = 0
    """Each pass has this many rows of requests without a session."""


ANSWERS: Final = 3
"""Each client asks for at least this many answers: one of every family."""

ROWS: Final = 1024
"""A pass has at most this many rows, as serving engines limit the tokens of a step."""


def simulate(world: World, arm: Arm, clients: Sequence[Sequence[Source]]) -> list[Answer]:
    """Return every answer. Each client asks for its sources one by one, beginning at time 0."""
    if arm.rival is not None:
        return _rival(world, arm.rival, clients)
    run = _Run(world, arm)
    for sources in clients:
        answer_cache = AnswerCache(arm.answer_cache_tokens) if arm.answer_cache_tokens else None
        run.ask(list(sources), answer_cache, SpeedupEstimates())
    run.clock.run()
    return run.answers


def _rival(
    world: World, speculation: Speculation, clients: Sequence[Sequence[Source]]
) -> list[Answer]:
    clock, chance, answers = Clock(), Random(0), list[Answer]()
    engine = Engine(clock, world.hosts, world.rows, speculation)
    for sources in clients:
        paths = partial(LinkPath, world.conditions, chance)
        ask(clock, engine, speculation, paths, sources, answers)
    clock.run()
    return answers


class _Run:
    def __init__(self, world: World, arm: Arm) -> None:
        self.clock = Clock()
        self.answers: list[Answer] = []
        self._world = world
        self._arm = arm
        self._hosts = _as_used(world.hosts, arm)
        link = Conditions() if arm.colocated else world.conditions
        stack_ms = 1000 * self._hosts.stack_s  # the software at the link's ends
        self._conditions = replace(link, rtt_ms=link.rtt_ms + stack_ms)
        self._chance = Random(0)  # for the link's jitter and losses
        self._names = count()
        self._verifier = Verifier(
            self.clock,
            world.limits,
            self._hosts,
            world.rows,
            others=world.others,
            colocated=arm.colocated,
        )

    def ask(
        self,
        sources: list[Source],
        answer_cache: AnswerCache | None,
        speedups: SpeedupEstimates,
    ) -> None:
        """Ask for one source after another. cache: the client's earlier answers. speedups: what
        draft tokens have earned before."""
        if not sources:
            return
        arm, (source, *rest) = self._arm, sources
        up, down = (LinkPath(self._conditions, self._chance) for _ in range(2))
        expected = (
            answer_cache.expected(source.prompt, len(source.tokens)) if answer_cache else ()
        )
        request = Open(
            model="target", vocabulary="", prompt=source.prompt, sampling=Sampling(), seed=0,
            max_tokens=len(source.tokens), stop_tokens=(), fill=arm.fill,
            ngram_drafts=arm.ngram_drafts, predicted=source.predicted or expected,
        )  # fmt: skip

        def done() -> None:
            edge.answer.bytes_up, edge.answer.bytes_down = up.bytes, down.bytes
            self.answers.append(edge.answer)
            if answer_cache is not None:
                answer_cache.add(source.prompt, source.tokens)
            edge.machine.close()
            self.ask(rest, answer_cache, speedups)

        machine = DraftMachine(
            request,
            arm.policy or StreamPolicy(),
            self._world.limits,
            JUDGES[request.judge].edge(request, iter(())),
            rtt_s=lambda: self._conditions.rtt_s,
            drafts=arm.policy is not None,
            lookup=PromptLookup(request.prompt, answer_cache=answer_cache)
            if arm.lookup
            else None,
            speedups=(lambda: speedups) if arm.fill == "auto" else None,
        )
        drafting, draft_s = self._verifier.drafting, self._hosts.draft_s
        make: Callable[..., Edge] = Edge
        if arm.branches:
            make = partial(CachingEdge, gamma=arm.gamma, branches=arm.branches)
        edge = make(self.clock, source, machine, draft_s, drafting=drafting, done=done)
        owner = Owner(str(id(answer_cache))) if answer_cache is not None else None
        served = Served(
            str(next(self._names)), source, Line(self.clock, down, edge.receive), owner
        )
        edge.uplink = Line(self.clock, up, partial(self._verifier.receive, served))
        edge.uplink.send(request)
        edge.start(self._hosts.draft_prefill_s * len(source.prompt))


def _as_used(hosts: Hosts, arm: Arm) -> Hosts:
    """Return the speeds of both ends for this arm. Passes of a colocated arm include the draft
    model's gamma steps for all sessions, each of which has gamma + 1 rows."""
    if arm.waits and hosts.alone_s is not None:
        hosts = replace(hosts, draft_s=hosts.alone_s)
    if not arm.colocated:
        return hosts
    drafts = hosts.colocated_s or Curve({1: hosts.draft_s.of(1)})

    def drafting_s(rows: int) -> float:
        return arm.gamma * drafts.of(max(1, rows // (arm.gamma + 1)))

    return replace(hosts, pass_s=hosts.pass_s.plus(drafting_s), draft_s=Curve({1: 0.0}))


# Compares arms by cells: arm, family, temperature and link, at the best gamma.

GAMMAS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
BRANCHES: Final = (2, 4, 8, 15, 30)
"""`acespec` is tried with these numbers of branches, and with none: 1 and 60 are hardly ever
best."""

ROUNDS: Final[Mapping[str, Sequence[Callable[[int], Arm]]]] = {
    "sync": [sync],
    "paper": [paper],
    "acespec": [paper, *(partial(acespec, branches=count) for count in BRANCHES)],
    "colocated": [colocated],
}
"""These functions make an arm of each kind for a gamma; each prompt has its best one."""

PLAIN: Final[Mapping[str, Arm]] = {
    "cloud": Arm(),
    "picospec": picospec(),
    "picospec-nofill": picospec("picospec-nofill", fill="never"),
    "picospec-nolookup": picospec("picospec-nolookup", lookup=False),
    "picospec-noown": picospec("picospec-noown", ngram_drafts=False),
}
ARMS: Final = (*PLAIN, *ROUNDS)


@dataclass(frozen=True, slots=True)
class Group:
    """A Group has the prompts of one family at one temperature."""

    family: str
    temperature: float
    sources: Sequence[Source]


def groups(folder: Path, families: Sequence[str], tokens: int | None = None) -> list[Group]:
    """Return the traces of some families, or of all, grouped by temperature and family; of each
    the first `tokens` tokens, or all. Raises OSError, or ValueError, also without traces."""
    traces = [t for t in load_folder(folder) if not families or root(t.family) in families]
    if not traces:
        raise ValueError(f"no traces of these families in {folder}")
    traces.sort(key=lambda trace: (trace.temperature, trace.family))
    grouped = groupby(traces, key=lambda trace: (trace.temperature, trace.family))
    return [
        Group(family, temperature, [traced(trace.cut(tokens)) for trace in some])
        for (temperature, family), some in grouped
    ]


class SimulatedRow(Cell, frozen=True, kw_only=True):
    """A SimulatedRow is one simulated cell. `tokens_per_s` is a geometric mean over prompts,
    and `drafted` counts all draft tokens, judged or not."""

    gamma: int | None


def candidates(name: str) -> list[Arm]:
    """Return the arms of a name: "sync" is tried at each gamma, "sync:4" at 4. Raises
    ValueError for a name that is not in ARMS."""
    kind, _, gamma = name.partition(":")
    if name in PLAIN:
        return [PLAIN[name]]
    if kind not in ROUNDS or (gamma and not (gamma.isdecimal() and int(gamma))):
        raise ValueError(f"no arm {name!r}: choose from {', '.join(ARMS)}, or give sync:4")
    return [make(int(g)) for make in ROUNDS[kind] for g in ([gamma] if gamma else GAMMAS)]


def rows(
    world: World, over: Sequence[Group], rtts_ms: Sequence[float], names: Sequence[str]
) -> Iterator[SimulatedRow]:
    """Yield a row for each arm, group and round trip. `cloud` is run for each of them."""
    for group in over:
        for rtt_ms in rtts_ms:
            there = replace(world, conditions=replace(world.conditions, rtt_ms=rtt_ms))
            cloud = _answers(there, Arm(), group)
            for name in names:
                yield _best(there, group, name, cloud)


def _best(world: World, group: Group, name: str, cloud: Sequence[Answer]) -> SimulatedRow:
    runs: dict[int, list[list[Answer]]] = {}
    for arm in candidates(name):
        runs.setdefault(arm.gamma, []).append(_answers(world, arm, group))
    best = {gamma: _best_answers(some) for gamma, some in runs.items()}
    gamma, answers = max(best.items(), key=lambda run: _rate(run[1]))
    return SimulatedRow(
        arm=name, family=group.family, temperature=group.temperature, gamma=gamma or None,
        rtt_ms=world.conditions.rtt_ms, rate_mbit=world.conditions.rate_mbit,
        prompts=len(answers), tokens_per_s=_rate(answers),
        speedup_vs_cloud=_rate(answers) / _rate(cloud),
        **figures(answers, gap_ms(cloud, 50)),
    )  # fmt: skip


def _best_answers(runs: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Return each prompt's fastest answer among runs with the same gamma."""
    same = zip(*runs, strict=True)
    return [max(answers, key=lambda answer: answer.tokens_per_s) for answers in same]


def _answers(world: World, arm: Arm, group: Group) -> list[Answer]:
    """Simulate the prompts one by one, the first one twice, so that passes are timed."""
    return simulate(world, arm, [[group.sources[0], *group.sources]])[1:]


def _rate(answers: Sequence[Answer]) -> float:
    return geometric_mean([answer.tokens_per_s for answer in answers])


def speedups(rows: Sequence[SimulatedRow]) -> dict[tuple[str, str], dict[float, float]]:
    """Return {(arm, family): {rtt_ms: speed-up}}; family "all" is the mean over families."""
    cells = [(row.arm, row.family, row.rtt_ms, row.speedup_vs_cloud) for row in rows]
    cells += [(arm, "all", rtt_ms, value) for arm, _, rtt_ms, value in cells]
    table: dict[tuple[str, str], dict[float, float]] = {}
    for (arm, family, rtt_ms), group in groupby(sorted(cells), key=lambda cell: cell[:3]):
        values = [value for *_, value in group]
        table.setdefault((arm, family), {})[rtt_ms] = geometric_mean(values)
    return table


def alternating(groups: Sequence[Group]) -> list[Source]:
    """Return all sources with the families alternating. Raises ValueError without groups."""
    if not groups:
        raise ValueError("there are no traces at this temperature")
    most = max(len(group.sources) for group in groups)
    return [group.sources[i % len(group.sources)] for i in range(most) for group in groups]
