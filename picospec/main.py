"""The `picospec` command. This module reads arguments; each command has its own module."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer import Argument, Option
from typer.core import TyperCommand
from typer.main import get_command

from gateway.hosting.cores import Pins, cores_of, parse_pins, share
from gateway.hosting.parent_death import program
from gateway.hosting.processes import ServiceError
from gateway.hosting.settings import WrongSettings, drop_links
from gateway.keys import InvalidKeys, KeyLimits, add_key
from gateway.system import become, usable_cpus
from local_models.errors import ModelError
from local_models.store import open_store
from picospec.backends import check_backends
from picospec.chat import app as chatting_app
from picospec.command_parts import HOST, EdgePort, Json, fail, first_key
from picospec.configuration import SERVICES, config_app, default_file, with_default_file
from picospec.connect import app as connecting_app
from picospec.findings import report
from picospec.launch import app as launching_app
from picospec.measure import app as measuring_app
from picospec.model_commands import models_app, pull, show
from picospec.service import NoService, call, install, kept_variables, remove, state
from picospec.service_managers import manager_of
from picospec.up import (
    Plan,
    check_plain,
    check_settings,
    read_settings,
    sources_of,
    up_at_a_distance,
    with_options,
)
from picospec.up import up as run_up

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app, name="models")
keys_app = typer.Typer(help="Keys of clients and edges.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")
app.add_typer(connecting_app)
app.add_typer(launching_app)
app.add_typer(chatting_app)
app.add_typer(measuring_app)

VerifierPort = Annotated[int, Option(envvar="VERIFIER_PORT", help="Port of the verifier.")]

VERIFIERS: Final = {"PICOSPEC_EDGE__VERIFIER_URL", "PICOSPEC_EDGE__VERIFIER_URLS"}
"""These variables name the verifiers of an edge."""

_SERVICE_OPTIONS: Final = frozenset({"--install-service", "--remove-service"})
FORWARD: Final = dict(allow_extra_args=True, ignore_unknown_options=True, help_option_names=[])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"picospec {version('picospec')}")
        raise typer.Exit


@app.callback()
def picospec(
    shows_version: Annotated[
        bool,
        Option("--version", "-V", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """A large model's own words, faster: the edge drafts, the cloud verifies."""
    drop_links(os.environ)


@app.command(context_settings=dict(allow_extra_args=True, ignore_unknown_options=True))
def up(
    context: typer.Context,
    edge_port: EdgePort = 8000,
    verifier_port: VerifierPort = 9000,
    target: Annotated[
        list[str] | None,
        Option(help="Large model: a name, owner/repo, hf://... or a path; may be repeated."),
    ] = None,
    draft: Annotated[
        str | None, Option(help="Draft model: the same, or none. Default: one that fits.")
    ] = None,
    config: Annotated[
        Path | None,
        Option(help=escape("TOML file with the tables [edge], [verifier], [models].")),
    ] = None,
    pin: Annotated[
        str | None,
        Option(help='Cores as "VERIFIER:EDGE", such as 0:1, or "none". Default: halves.'),
    ] = None,
    wait: Annotated[float, Option(help="Seconds to become ready in.")] = 300.0,
    rtt: Annotated[
        float, Option(min=0, help="Milliseconds of round trip to emulate between both ends.")
    ] = 0.0,
) -> None:
    """Run both ends on this machine, until Ctrl-C. Models that are missing are fetched.

    The verifier's llama.cpp also takes llama-server's options: -ngl, -sm, -ts, -mg, -ot, -ctk,
    -ctv, -fa, -c, -np and -t, and --exact near or strict.
    """
    from picospec.preparing import ModelChoice, computes_on_device, prepare, with_threads

    console, pins = Console(), _pins(pin)
    try:
        settings = with_options({} if config is None else read_settings(config), context.args)
        check_plain(settings, os.environ)
        targets: list[str | None] = [*target] if target else [None]
        choices = [
            ModelChoice.of(settings, os.environ, target=each, draft=draft) for each in targets
        ]
        check_settings(settings, os.environ, choices[0].draft)
        for each in check_backends():
            if each.advice:
                console.print(f"llama.cpp has {each.found}. Another build: {each.advice}")
        store = open_store({**os.environ, **sources_of(settings, os.environ)})
        on_device = computes_on_device(settings, os.environ)
        first, *more = [
            prepare(choice, store, console, on_device=on_device) for choice in choices
        ]
        arguments = {**first, "edge": ("--draft", choices[0].draft)} if more else first
        key = first_key(os.environ.get("PICOSPEC_API_KEYS", ""))
        threaded = with_threads(settings, pins)
        others = [each["verifier"] for each in more]
        plan = Plan(edge_port, verifier_port, threaded, arguments, others, pins, wait, key)
        if rtt:
            return asyncio.run(up_at_a_distance(plan, rtt, console))
        asyncio.run(run_up(plan, plan.services(), console))
    except (ServiceError, ModelError, WrongSettings, OSError) as error:
        fail(error)


class Forwarded(TyperCommand):
    """A command whose arguments a module reads, which has their names for a shell, too."""

    module: ClassVar[str]

    def get_params(self, ctx: Any) -> Any:  # noqa: ANN401 - of click, or Typer's own copy
        """Return the module's options where a shell completes a line, else none."""
        if not ctx.resilient_parsing:
            return super().get_params(ctx)
        command = get_command(import_module(f"{self.module}.__main__").app)
        return command.get_params(ctx)


def _add(name: str, module: str, help: str) -> None:
    """Add a command that becomes a module, which gets the signals and sets the status."""
    kind = type("Forwarded", (Forwarded,), {"module": module})

    @app.command(name, help=help, cls=kind, context_settings=FORWARD)
    def run(context: typer.Context) -> None:
        sys.stdout.flush()
        arguments = context.args
        if name == "edge" and (change := _SERVICE_OPTIONS & {*arguments}):
            return _change_service(change, [each for each in arguments if each not in change])
        if name == "edge" and arguments[:1] == ["--variables"]:  # of a service
            os.environ.update(kept_variables(Path(arguments[1])))
            arguments = arguments[2:]
        if name in SERVICES:
            arguments = with_default_file(name, arguments, os.environ)
        become([sys.executable, *program(module, *arguments)])


_add("edge", "edge_agent", help="Run the edge alone, or as a service; --help.")
_add("verifier", "verifier", help="Run the verifier alone; --help shows its options.")


def _change_service(change: frozenset[str], arguments: list[str]) -> None:
    """Install or remove the edge's service."""
    try:
        installs = change == {"--install-service"}
        typer.echo(install(arguments, os.environ) if installs else remove(os.environ))
    except (NoService, OSError) as error:
        fail(error)


def _ask_manager(command: Sequence[str]) -> NoReturn:
    try:
        raise typer.Exit(call(command))
    except NoService as error:
        fail(error)


@app.command()
def stop() -> None:
    """Stop the edge's service."""
    _ask_manager(manager_of(os.environ).stop)


@app.command()
def logs() -> None:
    """Follow the log of the edge's service."""
    _ask_manager(manager_of(os.environ).logs)


# The words of Ollama's users, for the same things here.
app.command("pull", hidden=True)(pull)
app.command("list", hidden=True)(show)
app.command("serve", hidden=True)(up)


@app.command("version", hidden=True)
def show_version() -> None:
    """Print the version."""
    _print_version(True)


@app.command("ps", hidden=True)
@app.command()
def status(
    edge_port: Annotated[int | None, Option(help="Port of the edge, if not as set.")] = None,
    verifier_port: Annotated[int | None, Option(help="The verifier's, too.")] = None,
    as_json: Json = False,
) -> None:
    """Show what runs on this machine: models, drafts, answers, and the verifiers in use."""
    from picospec.status import as_json as written
    from picospec.status import look, places
    from picospec.status import show as show_status

    try:
        addresses = places({"edge": edge_port, "verifier": verifier_port})
    except (WrongSettings, OSError) as error:
        fail(error)
    statuses = asyncio.run(look(addresses))
    if as_json:
        typer.echo(written(statuses))
    else:
        show_status(statuses, Console())
        if (unit := state(os.environ)) is not None:
            typer.echo(f"the service of this user is {unit}")
    if not any(each.runs for each in statuses):
        raise typer.Exit(1)


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
    as_json: Json = False,
) -> None:
    """Check this machine and the verifier, and say what to do about what is wrong."""
    from picospec.doctor import examine

    if (default := default_file("edge", os.environ)).is_file():
        config = config or default
    local = config is None and not VERIFIERS & os.environ.keys()
    url = verifier_url or (f"http://{HOST}:{verifier_port}" if local else None)
    try:
        findings = check_backends()
        findings += examine(
            config, url, draft, model, {"edge": edge_port, "verifier": verifier_port},
            named=verifier_url is not None or not local,
        )  # fmt: skip
    except (ModelError, ValueError, OSError) as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        report(findings, Console())
    if not all(each.ok for each in findings):
        raise typer.Exit(1)


def _pins(text: str | None) -> Pins:
    if sys.platform != "linux":
        return Pins()
    available = usable_cpus()
    try:
        return share(cores_of(available)) if text is None else parse_pins(text, available)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pin") from None


@keys_app.command()
def add(
    name: Annotated[str, Argument(help="Who will hold the key.")],
    file: Annotated[Path, Argument(help="The file that the setting keys_file names.")],
    sessions: Annotated[int | None, Option(min=1, help="Answers at once.")] = None,
    requests_a_minute: Annotated[int | None, Option(min=1)] = None,
    tokens_a_minute: Annotated[
        int | None, Option(min=1, help="Of prompts and answers.")
    ] = None,
    model: Annotated[
        list[str] | None, Option(help="The key opens this one; may be repeated.")
    ] = None,
) -> None:
    """Add a key, and print it. It is not kept: only its SHA-256 is in the file."""
    limits = KeyLimits(
        sessions=sessions, requests_a_minute=requests_a_minute, tokens_a_minute=tokens_a_minute
    )
    try:
        typer.echo(add_key(file, name, limits, model or ()))
    except (InvalidKeys, OSError) as error:
        fail(error)
