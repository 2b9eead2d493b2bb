"""The command lines of `picospec connect` and `picospec launch`."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from picospec.cli.chatting.client import ChatError
from picospec.cli.connecting import command as connecting
from picospec.cli.connecting.clients import Client, read_clients
from picospec.cli.connecting.copies import Changed, Copies
from picospec.cli.connecting.launching import NotLaunched
from picospec.cli.connecting.launching import launch as launch_client
from picospec.cli.options import EdgePort, Keys, Url, edge_url, fail, first_key

app = typer.Typer()


def _names() -> list[str]:
    return list(read_clients())


@app.command()
def connect(
    client: Annotated[
        str | None,
        Argument(help="Which; without it, all are listed.", autocompletion=_names),
    ] = None,
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
        edge = connecting.find_edge(edge_url(url, edge_port), first_key(api_keys))
        if not write:
            connecting.show(_client(client), edge, os.environ, console)
        elif not connecting.write(_client(client), edge, os.environ, copies, console):
            raise typer.Exit(1)
    except (ChatError, Changed, OSError) as error:
        fail(error)


@app.command(context_settings={"allow_extra_args": True})
def launch(
    context: typer.Context,
    client: Annotated[
        str,
        Argument(help="See picospec connect. Its arguments: after --.", autocompletion=_names),
    ],
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Run a client for this edge, and change none of its files."""
    try:
        edge = connecting.find_edge(edge_url(url, edge_port), first_key(api_keys))
        status = launch_client(_client(client), edge, context.args, os.environ)
    except (ChatError, NotLaunched, OSError) as error:
        fail(error)
    raise typer.Exit(status)


def _client(name: str) -> Client:
    clients = read_clients()
    if name not in clients:
        raise typer.BadParameter(f"{name} is none of {', '.join(clients)}")
    return clients[name]
