"""`picospec launch`: runs a client for this edge, and changes none of its files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from picospec.cli.connecting.clients import Client, Edge, Reference, escaped


class NotLaunched(Exception):
    """The client cannot be started; the text says why."""


def launch(
    client: Client, edge: Edge, arguments: Sequence[str], environ: Mapping[str, str]
) -> int:
    """Run a client until it ends; return its status. Raises NotLaunched."""
    if (how := client.launch) is None:
        raise NotLaunched(f"{client.title} is connected by its settings: picospec connect")
    program = how.program or client.program
    if (found := shutil.which(program)) is None:
        raise NotLaunched(f"there is no {program} on the PATH")
    with tempfile.TemporaryDirectory(prefix="picospec-") as folder:

        def value(of: str | Reference) -> str:
            if isinstance(of, str):
                return edge.fill_line(of)
            part = client.parts[of.text if of.text is not None else of.file or 0]
            if of.text is not None:
                return edge.fill(part).strip()
            file = Path(folder) / Path(part.files[0]).name
            file.write_text(edge.fill(part))
            return str(file)

        own = [
            edge.fill_line(each, escaped) if isinstance(each, str) else value(each)
            for each in how.arguments
        ]
        changed = {name: value(of) for name, of in how.environment.items()}
        return _run([found, *own, *arguments], {**environ, **changed})


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in front; signals of the terminal are its own to heed."""
    before = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGQUIT)}
    try:
        process = subprocess.Popen(command, env=environ)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
        return status if status >= 0 else 128 - status  # as a shell says of a signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
