"""`picospec connect` lists clients, prints the settings to paste into one, writes them, or
undoes that."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

from local_models.user_catalogue import user_file
from picospec.chat_client import ChatError, chosen, client_of, distinct, models_of
from picospec.client_files import Changed, Copies
from picospec.client_settings import NotMergeable, merged
from picospec.command_parts import EdgePort, Keys, Url, edge_url, fail, first_key
from picospec.known_clients import Client, Edge, FilePart, read_clients

app = typer.Typer()

ModelName = Annotated[str | None, Option("--model", help="Of several, the first one.")]

NO_KEY = "none"
"""Clients that require a key get this one if the edge requires none."""

HIDDEN = "..."
"""What is printed of a client's file shows this in place of the key."""


def find_edge(url: str, key: str | None, name: str | None = None) -> Edge:
    """Ask an edge for its models. name: the one to begin with; None: the first that is ready.
    Raises ChatError."""

    async def ask() -> Edge:
        async with client_of(url, key) as client:
            models = await models_of(client)
        first = chosen(models, name)
        more = [each for each in distinct(models) if each.is_settable and each.id != first.id]
        edge, *others = (
            Edge(url.rstrip("/"), each.id, each.context_tokens, key or NO_KEY)
            for each in (first, *more)
        )
        return replace(edge, others=tuple(others))

    return asyncio.run(ask())


def show_list(clients: Mapping[str, Client], console: Console) -> None:
    """Print a table of the clients, those on this machine first."""
    table = Table("client", "", "here", "what picospec can do", box=None, pad_edge=False)
    for client in sorted(clients.values(), key=lambda client: not client.is_here):
        writes = any(part.files for part in client.parts)
        can = ["connect", *["connect --write"] * writes, *["launch"] * bool(client.launch)]
        here = "[green]yes[/]" if client.is_here else "no"
        table.add_row(f"[bold]{client.name}[/]", client.title, here, ", ".join(can))
    console.print(table)


def show(client: Client, edge: Edge, environ: Mapping[str, str], console: Console) -> None:
    """Print the settings to paste, and where to paste them."""
    _say_first(client, edge, console)
    for step in client.steps:
        console.print(step, soft_wrap=True, highlight=False)
    for part in client.parts:
        if path := part.path(environ):
            console.print(f"[bold]{escape(str(path))}[/]", soft_wrap=True, highlight=False)
        _print(console, edge.fill(part))
    if any(part.files for part in client.parts):
        console.print(f"[dim]picospec connect {client.name} --write puts it there[/]")
    if client.launch:
        console.print(f"[dim]picospec launch {client.name} changes no file[/]")


def write(
    client: Client, edge: Edge, environ: Mapping[str, str], copies: Copies, console: Console
) -> bool:
    """Put the settings into the client's files, and show the difference.

    Returns True if all could be written; the rest is shown, to be pasted. Raises OSError.
    """
    _say_first(client, edge, console)
    done = [
        _write_part(client, part, edge, path, copies, console)
        for part in client.parts
        if (path := part.path(environ)) is not None
    ]
    if not done:
        show(client, edge, environ, console)
    return bool(done) and all(done)


def undo(client: Client, copies: Copies, console: Console) -> None:
    """Restore the client's files. Raises copies.Changed, OSError."""
    done = [f"{path} is as it was" for path in copies.undo(client.name)]
    _print(console, "\n".join(done or [f"nothing of {client.title} was written"]))


def _write_part(
    client: Client, part: FilePart, edge: Edge, path: Path, copies: Copies, console: Console
) -> bool:
    ours, before = edge.fill(part), ""
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        after = merged(part.format, before, ours)
    except (NotMergeable, UnicodeDecodeError) as error:
        console.print(f"{path} is left as it is: {error}.", style="yellow", markup=False)
        console.print("Put this into it:")
        _print(console, ours)
        return False
    if after == before:
        console.print(f"{path} has it already", highlight=False, markup=False)
        return True
    for line, style in _difference(str(path), before, after):
        shown = line if edge.key == NO_KEY else line.replace(edge.key, HIDDEN)
        console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)
    has_key = edge.key != NO_KEY and edge.key in ours
    copies.write(client.name, path, after.encode(), has_key=has_key)
    return True


def _difference(name: str, before: str, after: str) -> Iterator[tuple[str, str]]:
    styles = {"+": "green", "-": "red"}
    old, new = before.splitlines(), after.splitlines()
    for line in difflib.unified_diff(old, new, name, name, lineterm=""):
        yield line, styles.get(line[0], "dim")


def _say_first(client: Client, edge: Edge, console: Console) -> None:
    """Say which of several models the client begins with, and whether that has enough room."""
    if edge.others:
        others = ", ".join(each.model for each in edge.others)
        _print(console, f"The model is {edge.model}; --model takes another: {others}")
    if edge.context < 2 * client.first_request_tokens:
        console.print(
            f"{client.title} begins with about {client.first_request_tokens} tokens of its own,"
            f" and {edge.model} has room for {edge.context}.",
            style="yellow",
            soft_wrap=True,
            markup=False,
        )


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def names() -> list[str]:
    """Return the names of the clients."""
    return list(read_clients())


@app.command()
def connect(
    client: Annotated[
        str | None, Argument(help="Which; without it, all are listed.", autocompletion=names)
    ] = None,
    writes: Annotated[bool, Option("--write", help="Put it into the client's files.")] = False,
    undoes: Annotated[bool, Option("--undo", help="Take back what --write did.")] = False,
    model: ModelName = None,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Make Codex, Claude Code, an editor or another client use this edge."""
    console, copies = Console(), Copies(user_file(os.environ).with_name("copies"))
    try:
        if client is None:
            return show_list(read_clients(), console)
        client_spec = named_client(client)
        if undoes:
            return undo(client_spec, copies, console)
        edge = find_edge(edge_url(url, edge_port), first_key(api_keys), model)
        if not writes:
            show(client_spec, edge, os.environ, console)
        elif not write(client_spec, edge, os.environ, copies, console):
            raise typer.Exit(1)
    except (ChatError, Changed, OSError) as error:
        fail(error)


def named_client(name: str) -> Client:
    """Return the client of this name. Raises typer.BadParameter."""
    clients = read_clients()
    if name not in clients:
        raise typer.BadParameter(f"{name} is none of {', '.join(clients)}")
    return clients[name]
