"""`picospec launch` runs a client for this edge, and changes none of its files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from gateway.system import INTERRUPTS
from picospec.chat_client import ChatError
from picospec.command_parts import EdgePort, Keys, Url, edge_url, fail, first_key
from picospec.connect import ModelName, find_edge, named_client, names
from picospec.known_clients import Client, Edge, PartReference, escaped

app = typer.Typer()

_SECRET = re.compile(r"PICOSPEC_\w*(KEYS?|SECRET)")
"""A client that is started gets no variable with such a name, but for its own key."""


@app.command(context_settings={"allow_extra_args": True})
def launch(
    context: typer.Context,
    client: Annotated[
        str,
        Argument(help="See picospec connect. Its arguments: after --.", autocompletion=names),
    ],
    model: ModelName = None,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Run a client for this edge, and change none of its files."""
    client_spec = named_client(client)
    try:
        edge = find_edge(edge_url(url, edge_port), first_key(api_keys), model)
        status = run_client(client_spec, edge, context.args, os.environ)
    except (ChatError, NotLaunched, OSError) as error:
        fail(error)
    raise typer.Exit(status)


class NotLaunched(Exception):
    """The client cannot be started; the text gives the reason."""


def run_client(
    client: Client, edge: Edge, arguments: Sequence[str], environ: Mapping[str, str]
) -> int:
    """Run a client until it ends; return its status. Raises NotLaunched."""
    if (how := client.launch) is None:
        raise NotLaunched(f"{client.title} is connected by its settings: picospec connect")
    program = how.program or client.program
    if (program_path := shutil.which(program)) is None:
        raise NotLaunched(f"there is no {program} on the PATH")
    with tempfile.TemporaryDirectory(prefix="picospec-") as folder:

        def value(of: str | PartReference) -> str:
            if isinstance(of, str):
                return edge.fill_line(of)
            part = client.parts[of.text if of.text is not None else of.file or 0]
            if of.text is not None:
                return edge.fill(part).strip()
            file = Path(folder) / Path(part.files[0]).name
            file.write_text(edge.fill(part), "utf-8")
            return str(file)

        own = [
            edge.fill_line(each, escaped) if isinstance(each, str) else value(each)
            for each in how.arguments
        ]
        changed = {name: value(of) for name, of in how.environment.items()}
        kept = {n: text for n, text in environ.items() if not _SECRET.fullmatch(n)}
        return _run([program_path, *own, *arguments], {**kept, **changed})


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in the foreground; it handles the terminal's signals itself."""
    before = {n: signal.signal(n, lambda *_: None) for n in INTERRUPTS}
    try:
        process = subprocess.Popen(command, env=environ)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
        return status if status >= 0 else 128 - status  # like a shell after a signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
