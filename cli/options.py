"""What several commands take on their command lines, and how they end on an error."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer
from rich.console import Console
from typer import Option

from picospec.cli.doctor.machine import HOST
from picospec.cli.visible import visible

EdgePort = Annotated[int, Option(envvar="EDGE_PORT", help="Port of the edge.")]
Keys = Annotated[
    str, Option(envvar="PICOSPEC_API_KEYS", help="API keys, comma separated; first is used.")
]

Url = Annotated[str | None, Option(help="Where the edge is, if not here.")]


def edge_url(url: str | None, edge_port: int) -> str:
    """Return where an edge is."""
    return (url or f"http://{HOST}:{edge_port}").rstrip("/").removesuffix("/v1")


def fail(error: Exception) -> NoReturn:
    """Say what went wrong, and end the command."""
    text = visible(str(error))
    Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1) from None


def first_key(keys: str) -> str | None:
    """Return the first of keys with commas between them."""
    return next((key.strip() for key in keys.split(",") if key.strip()), None)
