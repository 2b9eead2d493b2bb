"""`picospec bench host` measures what the host's own code takes beside short passes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.data.files import save
from picospec.bench.link.relay_server import HOST
from picospec.bench.pace import machine
from picospec.bench.pace.fake_target import FAKE_S
from picospec.bench.pace.figures import Found, Line, found, tables
from picospec.bench.pace.loads import DRAFT_S, WARM_UP, Meter, Server, answers, edges
from picospec.bench.pace.script import prompt, source
from picospec.bench.run.client import AnswerError
from picospec.bench.run.services import free_port
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.processes import Service, ServiceError

PASS_MS: Final = 8.0
SERVICE: Final = f"The verifier's service and edges, beside a fake target of {PASS_MS:g} ms"

Counts = Annotated[str, typer.Option(help="Numbers of sessions.")]
Out = Annotated[Path, typer.Option("--json", help="Where the results go.")]


def host(
    out: Out,
    parts: Annotated[str, typer.Option(help="Of machine,service.")] = "machine,service",
    steps: Annotated[int, typer.Option(help="Steps of the machine to time.")] = 120,
    machine_sessions: Counts = "1,4,16,64,256",
    sessions: Counts = "1,16,64",
    tokens: options.Tokens = 150,
    seconds: Annotated[float, typer.Option(help="A load lasts this long or longer.")] = 4.0,
) -> None:
    """Measure the time of the verifier's and the edges' own code."""
    with options.checked():
        counts, of_machine = _counts(sessions), _counts(machine_sessions)
        wanted = options.names(parts)
        if unknown := set(wanted) - {"machine", "service"}:
            raise ValueError(f"--parts: {', '.join(unknown)} is unknown")
    settings: dict[str, str | float] = {
        "steps": steps, "tokens": tokens, "seconds": seconds,
        "pass_ms": PASS_MS, "draft_ms": 1000 * DRAFT_S,
    }  # fmt: skip
    results = found(settings, sys.executable)
    if "machine" in wanted:
        for line in machine.measured(of_machine, steps):
            keep(results, line, out)
    if "service" in wanted:
        with failing():
            asyncio.run(_keep_all(results, service(counts, tokens, seconds), out))
    typer.echo(tables(results.lines))


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def keep(results: Found, line: Line, out: Path) -> None:
    """Add a line to the results, save them, and show that there is progress."""
    results.lines.append(line)
    save(results, out)
    typer.echo(f"{line.part}: {line.load} {line.figures}", err=True)


async def _keep_all(results: Found, lines: AsyncGenerator[Line], out: Path) -> None:
    async with aclosing(lines):
        async for line in lines:
            keep(results, line, out)


@contextmanager
def failing() -> Iterator[None]:
    """End the command with the first error of a server or a client."""
    try:
        yield
    except* (ServiceError, AnswerError, ApiError, httpx.HTTPError, OSError) as errors:
        options.fail(Console(), errors)


async def service(
    counts: Sequence[int], tokens: int, seconds: float
) -> AsyncGenerator[Line]:
    """Load the verifier's service with edges, at each number of them."""
    url = f"http://{HOST}:{free_port()}"
    command = (
        sys.executable, "-m", "picospec.bench.pace.fake_target", "--port", url[-5:],
        "--pass-ms", f"{PASS_MS}", "--sessions", f"{2 * max(counts)}",
    )  # fmt: skip
    async with Server(Service("verifier", command, url)) as server:
        for count in counts:
            asked = [source(prompt(i), tokens) for i in range(count)]
            async with edges(url, asked) as clients:
                await answers(clients, asked, WARM_UP)
                meter, fake_s = Meter(), await _fake_s(url)
                while meter.seconds < seconds:
                    with meter.measuring(server.group):
                        got = await answers(clients, asked, tokens)
                    meter.count(got)
                fake_us = 1e6 * (await _fake_s(url) - fake_s) / meter.tokens
            more = {"of API the fake target, us a token": fake_us}
            yield Line(SERVICE, {"sessions": count}, meter.figures | more)


async def _fake_s(url: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{url}/metrics")).text
    return float(text.partition(f"\n{FAKE_S} ")[2].split()[0])
