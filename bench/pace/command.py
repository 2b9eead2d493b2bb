"""`python -m bench host` and `standin` measure what our own code takes beside short passes."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import product
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console

from bench import options
from bench.files import save
from bench.link import Conditions
from bench.pace import loads, machine
from bench.pace.fake_target import FAKE_S
from bench.pace.loads import DRAFT_S, Arm, Rounds, by_turns, rounds
from bench.pace.results import Line, found, tables
from bench.pace.script import Drafts
from bench.pace.tiny_model import make
from bench.run.client import AnswerError
from bench.run.rivals import PLAIN, Rival
from bench.run.services import VLLMS_PORT, Services, ServicesPlan, free_port, linked
from bench.simulator.edge import Answer
from bench.simulator.hosts import Curve, Hosts, World
from bench.simulator.source import Source
from bench.simulator.world import Arm as Cloud
from bench.simulator.world import picospec
from bench.simulator.world import simulate as answers
from gateway.errors import ApiError
from gateway.hosting.processes import ServiceError
from verifier.settings import VerifierSettings

PASS_MS: Final = 8.0
PARTS: Final = ("machine", "service")
ARMS: Final = ("stock", "stock-sync", "plugin", "sessions", "mixed", "useless")
Lines = AsyncGenerator[Line]
Worker = Mapping[str, float]
"""A Worker has the settings of the stand-in's worker."""

DRAFTS: Final[Mapping[str, Drafts]] = {
    "sessions": "right", "mixed": "mixed", "useless": "useless"
}  # fmt: skip
"""The edges of these arms draft so. The other arms are plain requests."""

FAILURES: Final = (ServiceError, AnswerError, ApiError, httpx.HTTPError, OSError)
"""Servers and clients fail so."""

SERVICE: Final = f"The verifier's service and edges, beside a fake target of {PASS_MS:g} ms"
STAND_IN: Final = "vLLM with a stand-in for the GPU"

MODEL: Final = "tiny"
ANY_CORES: Final = frozenset[int]()
ENVIRONMENT: Final = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
}  # fmt: skip

Turns = Annotated[int, typer.Option(help="Times that each load is measured.")]


def host(
    out: options.Out,
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    steps: Annotated[int, typer.Option(help="Steps of the machine to time.")] = 120,
    machine_sessions: options.Counts = "1,4,16,64,256",
    sessions: options.Counts = "1,16,64",
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
        names = options.known(parts, PARTS)
        of_machine, of_service = map(options.counts, (machine_sessions, sessions))

    async def lines() -> Lines:
        if "machine" in names:
            for count, figures in machine.measured(of_machine, steps):
                yield Line(machine.PART, {"sessions": count}, figures)
        if "service" in names:
            async for line in _service(of_service, tokens, turns, together=together):
                yield line

    settings = {
        "steps": steps, "tokens": tokens, "turns": turns, "together": int(together),
        "pass_ms": PASS_MS, "draft_ms": 1000 * DRAFT_S,
    }  # fmt: skip
    _measure(lines(), settings, verifier_python, out)


def standin(
    out: options.Out,
    passes: Annotated[str, typer.Option(help="Times of a pass in ms.")] = "8,25",
    clients: options.Counts = "1,16,64",
    rtt: options.Rtt = "0,20",
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
        names, times = options.known(arms, ARMS), options.numbers(passes)
        grid = list(product(options.numbers(rtt), options.counts(clients)))

    async def lines() -> Lines:
        for pass_ms in times:
            worker = {"pass_ms": pass_ms, "twice_at": twice_at, "launch_ms": launch}
            of = (worker, names, grid, tokens, turns, draft / 1000)
            async for line in _stood_in(verifier_python, *of):
                yield line

    settings = {
        "tokens": tokens, "turns": turns, "launch_ms": launch, "twice_at": twice_at,
        "draft_ms": draft,
    }  # fmt: skip
    _measure(lines(), settings, verifier_python, out)


def _measure(lines: Lines, settings: Mapping[str, str | float], python: str, out: Path) -> None:
    """Save the results after each line, and show all at the end, also if a server or a client
    fails, which ends the command with the first error."""
    results = found(settings, python)

    async def keep() -> None:
        async with aclosing(lines):
            async for line in lines:
                results.lines.append(line)
                save(results, out)
                typer.echo(tables([line]).splitlines()[-1], err=True)

    try:
        asyncio.run(keep())
    except* FAILURES as errors:
        typer.echo(tables(results.lines))
        options.fail(Console(stderr=True), errors)
    typer.echo(tables(results.lines))


async def _service(counts: Sequence[int], tokens: int, turns: int, *, together: bool) -> Lines:
    """Load the verifier's service with edges, at each number of them, or with one edge that has
    so many sessions."""
    passes = ("--pass-ms", f"{PASS_MS}", "--sessions.max-sessions", f"{max(counts)}")
    plan = ServicesPlan(
        "fake", "", {}, "vllm", passes, verifier_module="bench.pace.fake_target",
        verifier_cores=ANY_CORES,
    )  # fmt: skip
    async with Services(plan) as services:
        url, group = services.verifier_url, services.pids["verifier"]
        for count in counts:
            turns_by_client = rounds(count, turns, tokens)
            async with loads.edges(url, turns_by_client, together=together) as clients:
                arms = {"sessions": Arm(clients, turns_by_client, group)}
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
    python: str, worker: Worker, names: Sequence[str],
    grid: Sequence[tuple[float, int]], tokens: int, turns: int, draft_s: float,
) -> Lines:  # fmt: skip
    """Load the servers that the arms need, over each round trip with so many clients."""
    most = max(count for _, count in grid)
    async with AsyncExitStack() as stack:
        model = make(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        servers: dict[str, Services] = {}
        for kind in dict.fromkeys(map(_kind, names)):
            plan = on_stand_in(python, model, 2 * most, worker, kind)
            servers[kind] = await stack.enter_async_context(Services(plan))
        for rtt_ms, count in grid:
            async with AsyncExitStack() as clients:
                arms = {}
                for name in names:
                    asked = rounds(count, turns, tokens, DRAFTS.get(name, "right"))
                    server = servers[_kind(name)]
                    arms[name] = await _arm(clients, name, server, rtt_ms, asked, draft_s)
                measured = await by_turns(arms, tokens)
            for name, of_arm in measured.items():
                load = {"pass, ms": worker["pass_ms"], "RTT, ms": rtt_ms, "clients": count}
                figures = loads.figures(of_arm, measured[names[0]])
                if name in DRAFTS:
                    last = arms[name].rounds[-1]
                    figures["simulated, over plain"] = _simulated(worker, rtt_ms, draft_s, last)
                yield Line(STAND_IN, {**load, "arm": name}, figures)


def _simulated(
    worker: Worker, rtt_ms: float, draft_s: float, sources: Sequence[Source]
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


def _kind(arm: str) -> str:
    """Return which server an arm needs: vLLM alone, also synchronous, or with the plugin."""
    return arm if "stock" in arm else "plugin"


async def _arm(
    stack: AsyncExitStack, name: str, server: Services, rtt_ms: float,
    rounds: Rounds, draft_s: float,
) -> Arm:  # fmt: skip
    """Open the clients of an arm, at a distance from its server."""
    url = server.verifier_url if name in DRAFTS else server.plain_url
    if rtt_ms:
        url, _ = await stack.enter_async_context(linked(url, Conditions(rtt_ms)))
    if name in DRAFTS:
        edges = loads.edges(url, rounds, draft_s=draft_s)
        clients = await stack.enter_async_context(edges)
    else:
        clients = [loads.plain(url, MODEL)] * len(rounds[0])
    return Arm(clients, rounds, server.pids["verifier"])


def on_stand_in(
    python: str, model: Path, clients: int, worker: Worker, kind: str
) -> ServicesPlan:
    """Return a server on the stand-in for a GPU, for so many requests at once. worker: the
    stand-in's settings."""
    stand_in = "bench.pace.standin.StandIn"
    options = {
        "dtype": "bfloat16", "max-model-len": "2048", "block-size": "16",
        "load-format": "dummy", "max-num-batched-tokens": "2048",
        "max-num-seqs": f"{clients}", "served-model-name": MODEL,
        "worker-cls": f"{stand_in}Worker",
        "distributed-executor-backend": f"{stand_in}Executor",
        "additional-config": json.dumps({"standin": worker}),
        **({"async-scheduling": "false"} if kind == "stock-sync" else {}),
    }  # fmt: skip
    arguments = [text for pair in options.items() for text in (f"--vllm.{pair[0]}", pair[1])]
    arguments += ["--sessions.max-sessions", f"{clients}", VLLMS_PORT, f"{free_port()}"]
    rival = None if kind == "plugin" else Rival(PLAIN)
    return ServicesPlan(
        str(model), "", {}, "vllm", arguments, python, ANY_CORES, environment=ENVIRONMENT,
        rival=rival,
    )  # fmt: skip
