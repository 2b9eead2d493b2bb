"""`picospec bench capacity`: many sessions at one real verifier."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.capacity.figures import Capacity, table
from picospec.bench.capacity.loading import Load
from picospec.bench.data.files import save
from picospec.bench.data.host import commit, this_host
from picospec.bench.run.client import AnswerError
from picospec.bench.run.services import Services, ServicesPlan, verifier_arguments
from picospec.bench.simulator.capacity import alternating
from picospec.bench.simulator.hosts import hosts_of
from picospec.bench.simulator.table import groups
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.processes import ServiceError


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
    try:
        counts = [int(count) for count in sessions.split(",")]
        recorded = groups(traces, options.names(families), tokens)
        sources = alternating([group for group in recorded if group.temperature == 0.0])
        load = Load(url, sources, rtt, step / 1000, hosts_of(hosts) if hosts else None)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
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
    """Measure, and save and show each row. Without a URL, a verifier is started."""
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
