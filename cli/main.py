"""The `picospec` command. This module reads arguments; each command has its own module."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from typer import Argument, Option

from picospec.cli.chat import chat as chat_in_terminal
from picospec.cli.chat_client import ChatError
from picospec.cli.connecting import command as connecting
from picospec.cli.connecting.clients import Client, read_clients
from picospec.cli.connecting.copies import Changed, Copies
from picospec.cli.connecting.launching import NotLaunched
from picospec.cli.connecting.launching import launch as launch_client
from picospec.cli.doctor.finding import report
from picospec.cli.doctor.machine import HOST, check_gpu, gpu_here
from picospec.cli.keys import keys_app
from picospec.cli.models import models_app
from picospec.cli.up import Plan, check_plain, read_settings
from picospec.cli.up import up as run_up
from picospec.cli.visible import visible
from picospec.gateway.hosting.cores import Pins, cores_of, parse_pins, share, usable
from picospec.gateway.hosting.parent_death import program
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import ModelError
from picospec.models.llama_library import can_use_gpu, has_llama
from picospec.models.store import open_store

app = typer.Typer(
    help="A large model's own words, faster: the edge drafts, the cloud verifies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")

EdgePort = Annotated[int, Option(envvar="EDGE_PORT", help="Port of the edge.")]
VerifierPort = Annotated[int, Option(envvar="VERIFIER_PORT", help="Port of the verifier.")]
Keys = Annotated[
    str, Option(envvar="PICOSPEC_API_KEYS", help="API keys, comma separated; first is used.")
]

VERIFIERS: Final = {"PICOSPEC_EDGE__VERIFIER_URL", "PICOSPEC_EDGE__VERIFIER_URLS"}
"""Variables that name verifiers for an edge."""

PASS_ON: Final = dict(allow_extra_args=True, ignore_unknown_options=True, help_option_names=[])


@app.command()
def up(
    edge_port: EdgePort = 8000,
    verifier_port: VerifierPort = 9000,
    target: Annotated[
        str | None, Option(help="Large model: a name, owner/repo, hf://..., or a path.")
    ] = None,
    draft: Annotated[
        str | None, Option(help="Draft model: the same, or none. Default: one that fits.")
    ] = None,
    config: Annotated[
        Path | None, Option(help="TOML file with the tables [edge] and [verifier].")
    ] = None,
    pin: Annotated[
        str | None,
        Option(help='Cores as "VERIFIER:EDGE", such as 0:1, or "none". Default: halves.'),
    ] = None,
    wait: Annotated[float, Option(help="Seconds to become ready in.")] = 300.0,
) -> None:
    """Run both ends on this machine, until Ctrl-C. Models that are missing are fetched."""
    from picospec.cli.preparing import Wanted, prepare, with_threads

    console, pins = Console(), _pins(pin)
    try:
        settings = {} if config is None else read_settings(config)
        check_plain(settings, os.environ)
        if has_llama() and not (gpu := check_gpu(gpu_here(), can_use_gpu())).ok:
            console.print(f"This machine has {gpu.found}. A faster build: {gpu.remedy}")
        wanted = Wanted.of(settings, os.environ, target=target, draft=draft)
        arguments = prepare(wanted, open_store(os.environ), console)
        key = _first_key(os.environ.get("PICOSPEC_API_KEYS", ""))
        threaded = with_threads(settings, pins)
        plan = Plan(edge_port, verifier_port, threaded, arguments, pins, wait, key)
        asyncio.run(run_up(plan, plan.services(), console))
    except (ServiceError, ModelError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _add(name: str, module: str, *arguments: str, help: str) -> None:
    """Add a command that becomes a module, which so gets the signals and sets the status."""

    @app.command(name, help=help, context_settings=PASS_ON)
    def become(context: typer.Context) -> None:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *program(module, *arguments, *context.args)])


_add("edge", "picospec.edge_agent", help="Run the edge alone; --help shows its options.")
_add("verifier", "picospec.verifier", help="Run the verifier alone; --help shows its options.")
_add("bench", "picospec.bench", help="Measure; --help shows how.")
replays = "Replay recorded traces on a virtual clock; --help shows how."
_add("simulate", "picospec.bench", "simulate", help=replays)


@app.command()
def chat(
    url: Annotated[str | None, Option(help="Any OpenAI-compatible service.")] = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
    steady: Annotated[
        bool, Option(help="Show tokens that come together one after another.")
    ] = True,
) -> None:
    """Talk to the model in this terminal. Ctrl-C ends an answer, Ctrl-D the conversation."""
    console = Console()
    where, key = url or f"http://127.0.0.1:{edge_port}", _first_key(api_keys)
    ask_user = partial(console.input, "[bold cyan]> [/]")
    chat_in_terminal(where, key, console, ask_user, steady=steady)


Url = Annotated[str | None, Option(help="Where the edge is, if not here.")]


@app.command()
def connect(
    client: Annotated[str | None, Argument(help="Which; without it, all are listed.")] = None,
    write: Annotated[bool, Option("--write", help="Put it into the client's files.")] = False,
    undo: Annotated[bool, Option("--undo", help="Take back what --write did.")] = False,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Have Codex, Claude Code, an editor or another client ask this edge."""
    console, copies = Console(), Copies(connecting.default_copies())
    try:
        if client is None:
            return connecting.show_list(read_clients(), console)
        if undo:
            return connecting.undo(_client(client), copies, console)
        edge = connecting.find_edge(_edge_url(url, edge_port), _first_key(api_keys))
        if not write:
            connecting.show(_client(client), edge, os.environ, console)
        elif not connecting.write(_client(client), edge, os.environ, copies, console):
            raise typer.Exit(1)
    except (ChatError, Changed, OSError) as error:
        _fail(error)


@app.command(context_settings={"allow_extra_args": True})
def launch(
    context: typer.Context,
    client: Annotated[str, Argument(help="See picospec connect. Its arguments: after --.")],
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Run a client for this edge, and change none of its files."""
    try:
        edge = connecting.find_edge(_edge_url(url, edge_port), _first_key(api_keys))
        status = launch_client(_client(client), edge, context.args, os.environ)
    except (ChatError, NotLaunched, OSError) as error:
        _fail(error)
    raise typer.Exit(status)


@app.command()
def doctor(
    edge_port: EdgePort = 8000,
    verifier_port: VerifierPort = 9000,
    config: Annotated[Path | None, Option(help="Settings file of the edge (TOML).")] = None,
    verifier_url: Annotated[str | None, Option(help="A verifier elsewhere.")] = None,
    draft: Annotated[str | None, Option(help="Draft model to check, as of the edge.")] = None,
    model: Annotated[
        str | None, Option(help="Model or pair that must be here. Default: none must.")
    ] = None,
) -> None:
    """Check this machine and the verifier, and say what to do about what is wrong."""
    from picospec.cli.doctor.examination import examine

    local = config is None and not VERIFIERS & os.environ.keys()
    url = verifier_url or (f"http://{HOST}:{verifier_port}" if local else None)
    try:
        findings = examine(config, url, draft, model, edge_port, verifier_port)
    except (ModelError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if not report(findings, Console()):
        raise typer.Exit(1)


def _pins(text: str | None) -> Pins:
    if sys.platform != "linux":
        return Pins()
    available = usable()
    try:
        return share(cores_of(available)) if text is None else parse_pins(text, available)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pin") from None


def _client(name: str) -> Client:
    clients = read_clients()
    if name not in clients:
        raise typer.BadParameter(f"{name} is none of {', '.join(clients)}")
    return clients[name]


def _edge_url(url: str | None, edge_port: int) -> str:
    return (url or f"http://{HOST}:{edge_port}").rstrip("/").removesuffix("/v1")


def _fail(error: Exception) -> NoReturn:
    text = visible(str(error))
    Console(stderr=True).print(text, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1) from None


def _first_key(keys: str) -> str | None:
    return next((key.strip() for key in keys.split(",") if key.strip()), None)
