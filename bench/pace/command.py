"""`python -m bench host` and `standin` measure what our own code takes beside short passes."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console

from bench import options
from bench.files import save
from bench.pace import loads, machine
from bench.pace.fake_target import FAKE_S
from bench.pace.loads import DRAFT_S, Arm, Server, by_turns, rounds
from bench.pace.results import Found, Line, found, tables
from bench.pace.script import Drafts
from bench.pace.tiny_model import make
from bench.pace.vllm_servers import MODEL, Vllm, on_stand_in
from bench.run.client import AnswerError
from bench.run.services import free_port, port
from bench.simulator.edge import Answer
from bench.simulator.hosts import Curve, Hosts
from bench.simulator.source import Source
from bench.simulator.world import Arm as Cloud
from bench.simulator.world import World, picospec
from bench.simulator.world import simulate as answers
from gateway.errors import ApiError
from gateway.hosting.processes import Service, ServiceError
from picospec.link import HOST
from picospec.link_path import Conditions
from verifier.settings import VerifierSettings

PASS_MS: Final = 8.0
PARTS: Final = ("machine", "service")
ARMS: Final = ("stock", "stock-sync", "plugin", "sessions", "mixed", "useless")
DRAFTS: Final[Mapping[str, Drafts]] = {
    "sessions": "right", "mixed": "mixed", "useless": "useless"
}  # fmt: skip
"""The edges of these arms draft so. The other arms are plain requests."""

FAILURES: Final = (ServiceError, AnswerError, ApiError, httpx.HTTPError, OSError)
"""Servers and clients fail so."""

SERVICE: Final = f"The verifier's service and edges, beside a fake target of {PASS_MS:g} ms"
STAND_IN: Final = "vLLM with a stand-in for the GPU"

Counts = Annotated[str, typer.Option(help="Numbers of clients.")]
Out = Annotated[Path, typer.Option("--json", help="Where the results go.")]
Turns = Annotated[int, typer.Option(help="Times that each load is measured.")]


def host(
    out: Out,
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    steps: Annotated[int, typer.Option(help="Steps of the machine to time.")] = 120,
    machine_sessions: Counts = "1,4,16,64,256",
    sessions: Counts = "1,16,64",
    tokens: options.Tokens = 150,
    turns: Turns = 4,
    together: Annotated[
        bool, typer.Option(help="In `service`, the sessions are of one edge.")
    ] = False,
    verifier_python: options.VerifierPython = sys.executable,
) -> None:
    """Measure the time of the verifier's and the edges' own code.

    machine: a step of the verifier's decisions. service: the service and edges beside a fake
    target.
    """
    with options.checked():
        names = _known(parts, PARTS)
        of_machine, of_service = map(_counts, (machine_sessions, sessions))
    settings = {
        "steps": steps, "tokens": tokens, "turns": turns, "together": int(together),
        "pass_ms": PASS_MS, "draft_ms": 1000 * DRAFT_S,
    }  # fmt: skip
    results = found(settings, verifier_python)
    with _shown(results):
        if "machine" in names:
            for count, figures in machine.measured(of_machine, steps):
                _keep(results, Line(machine.PART, {"sessions": count}, figures), out)
        if "service" in names:
            lines = _service(of_service, tokens, turns, together=together)
            asyncio.run(_keep_all(results, lines, out))


def standin(
    out: Out,
    passes: Annotated[str, typer.Option(help="Times of a pass in ms.")] = "8,25",
    clients: Counts = "1,16,64",
    rtt: Annotated[str, typer.Option(help="Round trips in ms.")] = "0,20",
    arms: Annotated[str, typer.Option(help=f"Of {', '.join(ARMS)}.")] = "stock,plugin,sessions",
    launch: Annotated[float, typer.Option(help="Time of a launch in ms.")] = 0.0,
    draft: Annotated[float, typer.Option(help="Time of a draft token in ms.")] = 1000 * DRAFT_S,
    twice_at: Annotated[int, typer.Option(help="A pass of so many rows takes twice.")] = 1024,
    tokens: options.Tokens = 150,
    turns: Turns = 4,
    verifier_python: options.VerifierPython = sys.executable,
) -> None:
    """Load vLLM, with and without the plugin, whose worker waits in place of computing.

    stock: plain requests to vLLM, with asynchronous scheduling; stock-sync: without. plugin:
    plain requests, and no session. sessions: edges whose draft tokens are right; mixed: four of
    five are; useless: none is. Arms take turns; ratios are to the first.
    """
    with options.checked():
        names, counts = _known(arms, ARMS), _counts(clients)
        times, distances = options.numbers(passes), options.numbers(rtt)
    settings = {
        "tokens": tokens, "turns": turns, "launch_ms": launch, "twice_at": twice_at,
        "draft_ms": draft,
    }  # fmt: skip
    results = found(settings, verifier_python)
    with _shown(results):
        for pass_ms in times:
            worker = {"pass_ms": pass_ms, "twice_at": twice_at, "launch_ms": launch}
            grid = [(rtt_ms, count) for rtt_ms in distances for count in counts]
            lines = _stood_in(verifier_python, worker, names, grid, tokens, turns, draft / 1000)
            asyncio.run(_keep_all(results, lines, out))


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def _known(text: str, known: Sequence[str]) -> list[str]:
    """Return the names in a text. Raises ValueError."""
    names = options.names(text)
    if not names or (unknown := set(names) - set(known)):
        raise ValueError(
            f"{', '.join(sorted(unknown)) if names else 'nothing'}: not of {known}"
        )
    return names


def _keep(results: Found, line: Line, out: Path) -> None:
    """Add a line to the results, save them, and show that there is progress."""
    results.lines.append(line)
    save(results, out)
    typer.echo(tables([line]).splitlines()[-1], err=True)


async def _keep_all(results: Found, lines: AsyncGenerator[Line], out: Path) -> None:
    async with aclosing(lines):
        async for line in lines:
            _keep(results, line, out)


@contextmanager
def _shown(results: Found) -> Iterator[None]:
    """Show the results at the end, also if a server or a client fails, which ends the command
    with the first error."""
    try:
        yield
    except* FAILURES as errors:
        typer.echo(tables(results.lines))
        options.fail(Console(stderr=True), errors)
    typer.echo(tables(results.lines))


async def _service(
    counts: Sequence[int], tokens: int, turns: int, *, together: bool
) -> AsyncGenerator[Line]:
    """Load the verifier's service with edges, at each number of them, or with one edge that has
    so many sessions."""
    url = f"http://{HOST}:{free_port()}"
    command = (
        sys.executable, "-m", "bench.pace.fake_target", "--port", f"{port(url)}",
        "--pass-ms", f"{PASS_MS}", "--sessions", f"{max(counts)}",
    )  # fmt: skip
    async with Server(Service("verifier", command, url)) as server:
        for count in counts:
            turns_by_client = rounds(count, turns, tokens)
            async with loads.edges(url, turns_by_client, together=together) as clients:
                arms = {"sessions": Arm(clients, turns_by_client, server.group)}
                fake_s = await _fake_s(url)
                measured = (await by_turns(arms, tokens))["sessions"]
                fake_s = await _fake_s(url) - fake_s
            tokens_in_all = sum(turn.tokens for turn in measured) + count * loads.WARM_UP
            of_it = {"of API the fake target, us a token": 1e6 * fake_s / tokens_in_all}
            yield Line(SERVICE, {"sessions": count}, loads.figures(measured) | of_it)


async def _fake_s(url: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{url}/metrics")).text
    return float(text.partition(f"\n{FAKE_S} ")[2].split()[0])


async def _stood_in(
    python: str,
    worker: Mapping[str, float],
    names: Sequence[str],
    grid: Sequence[tuple[float, int]],
    tokens: int,
    turns: int,
    draft_s: float,
) -> AsyncGenerator[Line]:
    """Load the servers that the arms need, over each round trip with so many clients."""
    most = max(count for _, count in grid)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = make(folder)
        servers: dict[str, tuple[Vllm, Server]] = {}
        for kind in dict.fromkeys(name if "stock" in name else "plugin" for name in names):
            server = on_stand_in(
                python, model, 2 * most, worker, plugin=kind == "plugin",
                synchronous=kind == "stock-sync",
            )  # fmt: skip
            servers[kind] = server, await stack.enter_async_context(Server(server.service))
        for rtt_ms, count in grid:
            async with AsyncExitStack() as clients:
                arms = {}
                for name in names:
                    turns_by_client = rounds(count, turns, tokens, DRAFTS.get(name, "right"))
                    server, started = servers[name if "stock" in name else "plugin"]
                    far = await clients.enter_async_context(
                        loads.linked(_url(name, server), rtt_ms)
                    )
                    arms[name] = await _arm(
                        clients, name, far, started, turns_by_client, draft_s
                    )
                measured = await by_turns(arms, tokens)
            for name, of_arm in measured.items():
                load = {"pass, ms": worker["pass_ms"], "RTT, ms": rtt_ms, "clients": count}
                figures = loads.figures(of_arm, measured[names[0]])
                if name in DRAFTS:
                    last = arms[name].rounds[-1]
                    figures["simulated, over plain"] = _simulated(worker, rtt_ms, draft_s, last)
                yield Line(STAND_IN, {**load, "arm": name}, figures)


def _simulated(
    worker: Mapping[str, float], rtt_ms: float, draft_s: float, sources: Sequence[Source]
) -> float:
    """Return the simulator's rate of these edges over that of plain requests."""
    pass_s = worker["pass_ms"] / 1000
    rows_s = Curve({0: pass_s, round(worker["twice_at"]): 2 * pass_s})
    limits = VerifierSettings(target="vllm").limits
    world = World(Hosts(rows_s, Curve({1: draft_s})), Conditions(rtt_ms), limits, machine.ROWS)
    clients = [[source] for source in sources]
    sessions, plain = (_rate(answers(world, of, clients)) for of in (picospec(), Cloud()))
    return sessions / plain


def _rate(answers: Sequence[Answer]) -> float:
    """Return the tokens/s of all answers together, from the first request to the last end."""
    seconds = max(a.asked_s + a.seconds for a in answers) - min(a.asked_s for a in answers)
    return sum(a.tokens for a in answers) / seconds


def _url(name: str, server: Vllm) -> str:
    """Return the address that the clients of an arm ask."""
    return server.sessions_url if name in DRAFTS else server.plain_url


async def _arm(
    stack: AsyncExitStack,
    name: str,
    far: str,
    started: Server,
    prompts_by_client: Sequence[Sequence[Source]],
    draft_s: float,
) -> Arm:
    """Open the clients of an arm. far: the address of the server at its distance."""
    if name in DRAFTS:
        edges = loads.edges(far, prompts_by_client, draft_s=draft_s)
        clients = await stack.enter_async_context(edges)
    else:
        clients = [loads.plain(far, MODEL)] * len(prompts_by_client[0])
    return Arm(clients, prompts_by_client, started.group)
