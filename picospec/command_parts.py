"""The commands share these options, harmless texts, and the end of one that failed."""

from __future__ import annotations

from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from typer import Option

from gateway.hosting.settings import WrongSettings

HOST: Final = "127.0.0.1"

EdgePort = Annotated[int, Option(envvar="EDGE_PORT", help="Port of the edge.")]
Keys = Annotated[
    str, Option(envvar="PICOSPEC_API_KEYS", help="API keys, comma separated; first is used.")
]

Url = Annotated[str | None, Option(help="Where the edge is, if not here.")]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs.")]

START: Final = "Start it with `picospec up`, or `picospec edge` for a verifier elsewhere."
"""This tells a user what to do about an edge that does not run on this machine."""

_ORDERS: Final = {*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\n\t"))
_MARKS: Final = {order: "\ufffd" for order in _ORDERS} | {ord("\r"): " "}


def visible(text: str) -> str:
    """Return the text with a mark in place of each control character (C0, C1) except newline
    and tab. With these, a text could fill the clipboard, clear the screen or change the title.
    The length stays, because spans of the text are counted in characters."""
    return text.translate(_MARKS)


def edge_url(url: str | None, edge_port: int) -> str:
    """Return the address of an edge, with its scheme and without `/v1`."""
    address = (url or f"{HOST}:{edge_port}").rstrip("/").removesuffix("/v1")
    return address if "://" in address else f"http://{address}"


def fail(error: Exception) -> NoReturn:
    """Print the error, and end the command: with status 2 if a setting is wrong, else 1."""
    text = visible(str(error))
    Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2 if isinstance(error, WrongSettings) else 1) from None


def first_key(keys: str) -> str | None:
    """Return the first of several comma-separated keys."""
    return next((key.strip() for key in keys.split(",") if key.strip()), None)
