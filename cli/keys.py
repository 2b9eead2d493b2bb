"""`picospec keys`: makes a key, and writes its hash into a file of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from picospec.gateway.tenants.keys import InvalidKeys, KeyLimits, add_key

keys_app = typer.Typer(help="Keys of clients and edges.", no_args_is_help=True)


@keys_app.callback()
def _keys() -> None:
    """Keys of clients and edges."""


@keys_app.command()
def add(
    name: Annotated[str, Argument(help="Who will hold the key.")],
    file: Annotated[Path, Argument(help="The file that the setting keys_file names.")],
    sessions: Annotated[int | None, Option(min=1, help="Answers at once.")] = None,
    requests_a_minute: Annotated[int | None, Option(min=1)] = None,
    tokens_a_minute: Annotated[
        int | None, Option(min=1, help="Of prompts and answers.")
    ] = None,
) -> None:
    """Add a key, and print it. It is not kept: only its SHA-256 is in the file."""
    limits = KeyLimits(
        sessions=sessions,
        requests_a_minute=requests_a_minute,
        tokens_a_minute=tokens_a_minute,
    )
    try:
        typer.echo(add_key(file, name, limits))
    except (InvalidKeys, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
