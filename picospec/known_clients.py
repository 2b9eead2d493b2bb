"""The clients that can be connected, as gateway/page/clients.json lists them.

The page reads the same table. Texts contain `${url}`, `${model}`, `${key}`, `${context}`,
`${input}` and `${output}`; the values are quoted as the text's format requires.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import msgspec

Format = Literal["toml", "json", "yaml", "shell", "vim", "text"]

MAX_OUTPUT_TOKENS: Final = 32_000
"""Clients are told this limit of an answer's tokens, or a quarter of a smaller context."""


class PartReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the client, by its index: its text, or the path of a file that has the text."""

    text: int | None = None
    file: int | None = None


class FilePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text for the client, which reads it from one of `files`, the usual place last. The
    variable `home` replaces the first folder of that path."""

    format: Format
    text: tuple[str | tuple[str, ...], ...]
    """The lines. A list of lines among them is there once for each model."""

    files: tuple[str, ...] = ()
    home: str = ""

    def path(self, environ: Mapping[str, str]) -> Path | None:
        """Return the first file that exists, or else the first whose folder exists."""
        paths = [Path(file).expanduser() for file in self.files]
        if home := environ.get(self.home):
            paths = [Path(home, *Path(file).parts[2:]) for file in self.files]
        existing_paths = [path for path in paths if path.exists()]
        existing_paths += [path for path in paths if path.parent.exists()]
        return next(iter([*existing_paths, *paths[-1:]]), None)


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way to start the client for the edge alone, without a change of its files."""

    program: str = ""
    arguments: tuple[str | PartReference, ...] = ()
    environment: dict[str, str | PartReference] = {}


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    title: str
    parts: tuple[FilePart, ...]
    program: str = ""
    signs: tuple[str, ...] = ()
    """Paths with wildcards. If one exists, the client is on this machine."""

    steps: tuple[str, ...] = ()
    first_request_tokens: int = 0
    """The client's first prompt has about this many tokens before the user's own words."""

    launch: Launch | None = None

    @property
    def is_here(self) -> bool:
        """True if the client is on this machine."""
        seen = (next(Path("/").glob(str(Path(s).expanduser())[1:]), None) for s in self.signs)
        return bool(self.program and shutil.which(self.program)) or any(seen)


@dataclass(frozen=True, slots=True)
class Edge:
    """The edge as a client sees it. url: without a path. context: of the model, in tokens.
    others: the same edge with each further model, for clients that can list several."""

    url: str
    model: str
    context: int
    key: str
    others: tuple[Edge, ...] = ()

    def fill(self, part: FilePart) -> str:
        """Return the text of a part; each line ends with a newline."""
        quote = _QUOTES.get(part.format, escaped)
        between = ",\n" if part.format == "json" else "\n"

        def filled(line: str | tuple[str, ...]) -> str:
            if isinstance(line, str):
                return self.fill_line(line, quote)
            lines = "\n".join(line)
            return between.join(e.fill_line(lines, quote) for e in (self, *self.others))

        return "".join(f"{filled(line)}\n" for line in part.text)

    def fill_line(self, text: str, quote: Callable[[str], str] = str) -> str:
        """Return a text with its values filled in, each passed through `quote`."""
        output = min(self.context // 4, MAX_OUTPUT_TOKENS)
        values = {
            "url": self.url,
            "model": self.model,
            "key": self.key,
            "context": str(self.context),
            "input": str(self.context - output),
            "output": str(output),
        }
        return re.sub(r"\$\{(\w+)\}", lambda match: quote(values[match[1]]), text)


def read_clients() -> dict[str, Client]:
    """Return the shipped clients by name."""
    table = (files("gateway") / "page" / "clients.json").read_bytes()
    clients = msgspec.json.decode(table, type=tuple[Client, ...])
    return {client.name: client for client in clients}


def escaped(text: str) -> str:
    """Escape a text for use within double quotes in JSON, TOML, YAML and Vim."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


_QUOTES: Final[dict[Format, Callable[[str], str]]] = {"shell": shlex.quote, "text": str}
