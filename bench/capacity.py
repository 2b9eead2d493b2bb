"""`picospec bench capacity` measures many sessions on one real verifier."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Final

import httpx
import msgspec
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.capacity_load import (
    Answered,
    Capacity,
    Client,
    Figures,
    Row,
    ScriptedDrafter,
    figures,
    plain,
    predict,
    scripted,
    table,
)
from picospec.bench.link import HOST, Conditions, Link
from picospec.bench.results import commit, save, this_host
from picospec.bench.run.client import AnswerError
from picospec.bench.run.services import Services, ServicesPlan, port, verifier_arguments
from picospec.bench.simulator.hosts import DEVICE_TWICE_AT, Curve, Hosts, hosts_of
from picospec.bench.simulator.source import Source
from picospec.bench.simulator.table import ANSWERS, ROWS, alternating, groups
from picospec.bench.simulator.world import Arm, World, picospec
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.processes import ServiceError
from picospec.speculation.messages import Limits, ModelFacts


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
                asked = divided(self.sources, count)
                for arm in arms[:: -1 if turn % 2 else 1]:
                    async with AsyncExitStack() as stack:
                        clients = [
                            await self._client(stack, arm, f"http://{HOST}:{link.port}", facts)
                            for _ in asked
                        ]
                        row = await _measured(arm, clients, asked, api)
                    predicted = self._predicted(arm, asked, facts.limits) if facts else None
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
        self, arm: str, asked: Sequence[Sequence[Source]], limits: Limits
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
        return predict(world, ARMS[arm], asked)


def divided(sources: Sequence[Source], clients: int) -> list[list[Source]]:
    """Return the questions of each client: ANSWERS of them, each client beginning at another
    one. With few clients each asks more, so that every question is asked."""
    each = max(ANSWERS, ceil(len(sources) / clients))
    return [list(islice(cycle(sources), n, n + each)) for n in range(clients)]


async def _measured(
    arm: str,
    clients: Sequence[Client],
    asked: Sequence[Sequence[Source]],
    api: httpx.AsyncClient,
) -> Row:
    """Measure after a warm-up that reads all prompts and opens all connections."""
    await _all(clients, asked, 1)
    passes, busy_s, began_s = await _passes(api), process_time(), perf_counter()
    found = await _all(clients, asked)
    busy_share = (process_time() - busy_s) / (perf_counter() - began_s)
    both = zip(passes, await _passes(api), strict=True)
    count, rows, seconds = (after - before for before, after in both)
    return Row(
        len(clients),
        arm,
        figures(found),
        None,
        rows / max(1, count),
        1000 * seconds / max(1, count),
        busy_share,
    )


async def _all(
    clients: Sequence[Client], asked: Sequence[Sequence[Source]], tokens: int | None = None
) -> list[list[Answered]]:
    """Make all clients ask concurrently. tokens: the limit of an answer; None: the trace's."""

    async def ask(client: Client, own: Sequence[Source]) -> list[Answered]:
        return [await client(source, tokens or len(source.tokens)) for source in own]

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(ask(*pair)) for pair in zip(clients, asked, strict=True)]
    return [task.result() for task in running]


async def _passes(api: httpx.AsyncClient) -> list[float]:
    text = (await api.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return [float(values.get(f"picospec:{name}", 0.0)) for name in PASSES]


async def _facts(api: httpx.AsyncClient) -> ModelFacts:
    known = (await api.get("/v1/model-facts")).raise_for_status()
    return msgspec.json.decode(known.content, type=ModelFacts)
