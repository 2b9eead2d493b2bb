"""`python -m bench capacity` measures many sessions on one real verifier, which plain requests
and scripted edges load.

A scripted edge is the product's own edge, but a script replaces its draft model: it drafts the
tokens of a trace after the time that a device would take. So one process can run many edges.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Final

import httpx
import msgspec
import numpy as np
import typer
from prometheus_client import CollectorRegistry
from pydantic import AnyHttpUrl
from rich.console import Console

from bench import options
from bench.results import Host, commit, save, this_host
from bench.run.client import AnswerError
from bench.run.services import Services, ServicesPlan, port, verifier_arguments
from bench.simulator.ends import Answer
from bench.simulator.hosts import DEVICE_TWICE_AT, Curve, Hosts, hosts_of
from bench.simulator.source import Source
from bench.simulator.world import (
    ANSWERS,
    ROWS,
    Arm,
    World,
    alternating,
    groups,
    picospec,
    simulate,
)
from bench.statistics import markdown
from edge_agent.app import open_verifiers
from edge_agent.draft.drafter import NoDrafter, StepSampler
from edge_agent.engine import EdgeEngine
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, EngineFault
from gateway.hosting.processes import ServiceError
from gateway.ports import Job, Statistics
from local_models.llama_cpp.prefix import common_prefix
from local_models.tokenizer import Tokenizer
from picospec.link import HOST, Conditions, Link
from speculation.draft_token import DraftToken
from speculation.messages import Limits, ModelFacts, Sampling, TokenId


def capacity(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--json", help="Where the results go.")],
    traces: options.Traces,
    sessions: Annotated[str, typer.Option(help="Numbers of them.")] = "1,4,8,16,32",
    rtt: Annotated[float, typer.Option(help="Round trip in ms.")] = 20.0,
    step: Annotated[float, typer.Option(help="Time of a draft step in ms.")] = 24.0,
    tokens: options.Tokens = 64,
    families: options.Families = "",
    hosts: Annotated[str, typer.Option(help="For the prediction: as `simulate` has it.")] = "",
    url: Annotated[str, typer.Option(help="Of a verifier that runs on this machine.")] = "",
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    verifier_python: options.VerifierPython = sys.executable,
) -> None:
    """Load a verifier with scripted edges, and with plain requests.

    Edges draft what the traces have, after the time of a step. Options it does not know go to
    the verifier.
    """
    with options.checked():
        counts = [int(count) for count in sessions.split(",")]
        recorded = groups(traces, options.names(families), tokens)
        sources = alternating([group for group in recorded if group.temperature == 0.0])
        load = Load(url, sources, rtt, step / 1000, hosts_of(hosts) if hosts else None)
    arguments = verifier_arguments(target, max(counts), context.args)
    plan = ServicesPlan(target_model, "", {}, target, arguments, verifier_python)
    if not url and plan.edge_cores:
        os.sched_setaffinity(0, plan.edge_cores)  # as in `run`
    settings: dict[str, str | float] = {
        "rtt_ms": rtt,
        "step_ms": step,
        "tokens": tokens,
        "hosts": hosts,
        "url": url,
    }
    results = Capacity(this_host(), commit(), plan.models, settings, [])
    try:
        asyncio.run(_run(load, counts, plan, results, out))
    except* (ServiceError, AnswerError, ApiError, httpx.HTTPError) as errors:
        options.fail(Console(), errors)


async def _run(
    load: Load, counts: Sequence[int], plan: ServicesPlan, results: Capacity, out: Path
) -> None:
    """Measure, save and show each row. Without a URL, start a verifier first."""
    async with AsyncExitStack() as stack:
        if not load.url:
            services = await stack.enter_async_context(Services(plan))
            load = replace(load, url=services.verifier_url)
        rows = await stack.enter_async_context(aclosing(load.rows(counts)))
        async for row in rows:
            results.rows.append(row)
            save(results, out)
            typer.echo(table(results.rows).splitlines()[-1])
    typer.echo(table(results.rows))


# Measures a verifier, and predicts the same figures, with each number of sessions.

ARMS: Final = {"cloud": Arm(), "picospec": picospec()}
PLAIN: Final = ("cloud",)
"""These arms also run on a server without sessions, such as vLLM's own."""

PASSES: Final = ("pass_seconds_count", "pass_rows_sum", "pass_seconds_sum")
"""These metrics of the verifier give the number of passes, their rows and their time."""


@dataclass(frozen=True, slots=True)
class Load:
    """A Load has a verifier on this machine, and what it is loaded with."""

    url: str
    sources: Sequence[Source]
    rtt_ms: float
    step_s: float
    """A draft step that reads one token takes this long; one of DEVICE_TWICE_AT tokens takes
    twice as long."""

    hosts: Hosts | None
    """The prediction assumes this speed of the verifier; None: nothing is predicted."""

    @property
    def device_s(self) -> Curve:
        return Curve({1: self.step_s, DEVICE_TWICE_AT: 2 * self.step_s})

    async def rows(
        self, sessions: Sequence[int], arms: Sequence[str] = tuple(ARMS)
    ) -> AsyncGenerator[Row]:
        """Measure the arms at each number of sessions, in alternating order. Raises
        AnswerError, gateway.errors.ApiError or httpx.HTTPError."""
        link = Link((HOST, port(self.url)), Conditions(self.rtt_ms))
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as api, link:
            facts = await _facts(api) if arms != PLAIN else None
            for turn, count in enumerate(sessions):
                divided_sources = divided(self.sources, count)
                for arm in arms[:: -1 if turn % 2 else 1]:
                    async with AsyncExitStack() as stack:
                        clients = [
                            await self._client(stack, arm, f"http://{HOST}:{link.port}", facts)
                            for _ in divided_sources
                        ]
                        row = await _measured(arm, clients, divided_sources, api)
                    predicted = (
                        self._predicted(arm, divided_sources, facts.limits) if facts else None
                    )
                    yield msgspec.structs.replace(row, predicted=predicted)

    async def _client(
        self, stack: AsyncExitStack, arm: str, url: str, facts: ModelFacts | None
    ) -> Client:
        if facts is None or arm == "cloud":
            return await stack.enter_async_context(plain(url))
        sources = {source.prompt: source for source in self.sources}
        drafter = ScriptedDrafter(sources, self.device_s, facts.vocabulary_size)
        return await stack.enter_async_context(scripted(url, drafter))

    def _predicted(
        self, arm: str, sources: Sequence[Sequence[Source]], limits: Limits
    ) -> Figures | None:
        if self.hosts is None:
            return None
        hosts = replace(
            self.hosts,
            draft_s=self.device_s,
            drafting_s=None,
            alone_s=None,
            draft_prefill_s=0.0,
        )
        world = World(hosts, Conditions(self.rtt_ms), limits, ROWS)
        return predict(world, ARMS[arm], sources)


def divided(sources: Sequence[Source], clients: int) -> list[list[Source]]:
    """Return the questions of each client: ANSWERS of them, each client beginning at another
    one. With few clients each asks more, so that every question is asked."""
    each = max(ANSWERS, ceil(len(sources) / clients))
    return [list(islice(cycle(sources), n, n + each)) for n in range(clients)]


async def _measured(
    arm: str,
    clients: Sequence[Client],
    sources: Sequence[Sequence[Source]],
    api: httpx.AsyncClient,
) -> Row:
    """Measure after a warm-up that reads all prompts and opens all connections."""
    await _all(clients, sources, 1)
    passes, busy_s, began_s = await _passes(api), process_time(), perf_counter()
    answers = await _all(clients, sources)
    busy_share = (process_time() - busy_s) / (perf_counter() - began_s)
    both = zip(passes, await _passes(api), strict=True)
    count, rows, seconds = (after - before for before, after in both)
    return Row(
        len(clients),
        arm,
        figures(answers),
        None,
        rows / max(1, count),
        1000 * seconds / max(1, count),
        busy_share,
    )


async def _all(
    clients: Sequence[Client], sources: Sequence[Sequence[Source]], tokens: int | None = None
) -> list[list[Answered]]:
    """Make all clients ask concurrently. tokens: the limit of an answer; None: the trace's."""

    async def ask(client: Client, own: Sequence[Source]) -> list[Answered]:
        return [await client(source, tokens or len(source.tokens)) for source in own]

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ask(*pair)) for pair in zip(clients, sources, strict=True)]
    return [task.result() for task in running]


async def _passes(api: httpx.AsyncClient) -> list[float]:
    text = (await api.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return [float(values.get(f"picospec:{name}", 0.0)) for name in PASSES]


async def _facts(api: httpx.AsyncClient) -> ModelFacts:
    known = (await api.get("/v1/model-facts")).raise_for_status()
    return msgspec.json.decode(known.content, type=ModelFacts)


# Computes figures of a verifier with many clients at once, measured or simulated.


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
    copies = [[copy(source) for source in own] for own in clients]  # one copy for each answer
    answers_by_source = {id(answer.source): answer for answer in simulate(world, arm, copies)}
    return figures(
        [[_answered(answers_by_source[id(source)]) for source in own] for own in copies]
    )


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


# Loads a verifier by plain requests, and by scripted edges.

TIMEOUT_S: Final = 600.0
"""A plain answer fails after this many seconds without a byte."""

GREEDY: Final = Sampling(temperature=0.0)

Client = Callable[[Source, int], Awaitable[Answered]]
"""A Client asks for an answer to a source with at most this many tokens. Raises AnswerError,
gateway.errors.ApiError or httpx.TransportError."""


@asynccontextmanager
async def plain(url: str) -> AsyncGenerator[Client]:
    """Yield a client of the verifier's own API."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        listed = (await http.get("/v1/models")).raise_for_status().json()

        async def ask(source: Source, tokens: int) -> Answered:
            body = {
                "model": listed["data"][0]["id"], "prompt": source.prompt, "temperature": 0,
                "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            asked_s, arrivals_s, text_tokens = perf_counter(), list[float](), 0
            async with http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = msgspec.json.decode(line.removeprefix("data: "))
                        if any(choice["text"] for choice in chunk.get("choices", ())):
                            arrivals_s.append(perf_counter())
                        text_tokens = (chunk.get("usage") or {}).get(
                            "completion_tokens", text_tokens
                        )
            if not text_tokens:
                raise AnswerError(f"status {response.status_code}, and no whole answer")
            return Answered(
                asked_s, perf_counter(), arrivals_s, text_tokens, text_tokens, text_tokens
            )

        yield ask


@asynccontextmanager
async def scripted(
    url: str,
    drafter: ScriptedDrafter,
    sampling: Sampling = GREEDY,
    identity: str = "",
    **extras: object,
) -> AsyncGenerator[Client]:
    """Yield a client that is a scripted edge. The others are of each request, as in Job."""
    metrics = EdgeMetrics(CollectorRegistry())
    settings = EdgeSettings(verifier_url=AnyHttpUrl(url))
    verifiers = open_verifiers(settings, metrics)
    engine = EdgeEngine(verifiers, drafter, settings, metrics, TargetsVocabulary())

    async def ask(source: Source, tokens: int) -> Answered:
        job = Job(
            "capacity", source.prompt, tokens, sampling, 0, extras=extras, identity=identity
        )
        asked_s, arrivals_s = perf_counter(), list[float]()
        text, counted = list[TokenId](), Statistics()
        async with aclosing(engine.generate(job)) as deltas:
            async for delta in deltas:
                counted = delta.statistics or counted
                if delta.tokens:
                    arrivals_s.append(perf_counter())
                    text += delta.tokens
        text_tokens, same = len(text), common_prefix(text, source.tokens)
        passes = counted.target_passes
        return Answered(asked_s, perf_counter(), arrivals_s, text_tokens, passes, same, text)

    try:
        yield ask
    finally:
        await engine.close()
        await verifiers.close()


@dataclass(frozen=True)
class ScriptedDrafter(NoDrafter):
    """Implements a Drafter that is never full. sources: by their prompts. step_s: seconds of a
    step, by the tokens it reads. vocabulary: the number of the target's tokens."""

    sources: Mapping[tuple[TokenId, ...], Source]
    step_s: Curve
    vocabulary: int

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> ScriptedSlot:
        return ScriptedSlot(self, self.sources[tuple(prompt)])


@dataclass(slots=True)
class ScriptedSlot:
    """Implements a DraftSlot that has read its prompt. Once the target's text leaves the trace,
    all its draft tokens are wrong."""

    drafter: ScriptedDrafter
    source: Source
    _read: list[TokenId] = field(default_factory=list)

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        output = list(context[len(self.source.prompt) :])
        unread = max(0, len(output) - common_prefix(self._read, output) - 1)
        drafts = self.source.drafts(output, ahead)
        self._read = [*output, *(draft.token for draft in drafts[:-1])]
        await asyncio.sleep(self.drafter.step_s.of(1 + unread + len(ahead)))
        return [replace(d, token=d.token % self.drafter.vocabulary) for d in drafts]

    def leave(self) -> None:
        """Do nothing, because nothing is held."""


class TargetsVocabulary:
    """Implements the Pairing of an edge whose draft model has the target's vocabulary."""

    relation: Final = "identical"
    translation: Final = None
    draft_tokens: Final = 0

    async def __call__(self, vocabulary: str) -> Tokenizer:
        raise EngineFault("a scripted edge reads no text")
