"""The clients that can be connected, and what becomes of their settings files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import tomlkit
import tomlkit.exceptions

# The clients that can be connected, as gateway/page/clients.json lists them.
#
# The page reads the same table. Texts contain `${url}`, `${model}`, `${key}`, `${context}`,
# `${input}` and `${output}`; the values are quoted as the text's format requires.

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


# Merges a client's settings into a file that has other settings too.
#
# Files that cannot be merged without loss are left to the user: JSON with comments, YAML. The
# result is read again, and must mean the old settings with the client's over them, no more.


class NotMergeable(Exception):
    """The file must be changed by hand; the text gives the reason."""


def merged(format: Format, before: str, ours: str) -> str:
    """Return the text of a file with our settings merged into it. Raises NotMergeable."""
    if not before.strip() or before == ours:
        return ours
    if format == "json":
        return _merged_json(before, ours)
    if format == "toml":
        return _merged_toml(before, ours)
    raise NotMergeable(f"it is {format.upper()}, which would lose its comments")


def _merged_json(before: str, ours: str) -> str:
    try:
        settings = json.loads(before, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise NotMergeable(f"it is no plain JSON ({error}); it may have comments") from error
    our_table = json.loads(ours)
    if type(settings) is not type(our_table):
        raise NotMergeable("it holds something else than this client's settings")
    indent = re.search(r"^([ \t]+)\S", before, re.MULTILINE)
    text = json.dumps(
        _over(settings, our_table),
        indent=indent[1] if indent else 2,
        ensure_ascii=False,
    )
    line_end = "\r\n" if "\r\n" in before else "\n"
    return text.replace("\n", line_end) + before[len(before.rstrip()) :]


def _merged_toml(before: str, ours: str) -> str:
    try:
        settings, expected = tomlkit.parse(before), tomllib.loads(before)
        our_table = tomllib.loads(ours)
        _set(settings, our_table)
        after = settings.as_string()
        if tomllib.loads(after) != _over(expected, our_table):
            raise NotMergeable("its tables are in an order that cannot be kept")
    except (tomlkit.exceptions.TOMLKitError, tomllib.TOMLDecodeError, TypeError) as error:
        raise NotMergeable(f"it is no TOML that can be added to: {error}") from error
    return after


def _set(table: MutableMapping[str, Any], our_values: Mapping[str, object]) -> None:
    for name, value in our_values.items():
        if isinstance(value, Mapping) and isinstance(table.get(name), Mapping):
            _set(table[name], value)
        else:
            table[name] = value


def _over(theirs: object, ours: object) -> object:
    """Return settings with ours over them. In lists, items of the same `name` are replaced."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return {**theirs, **{k: _over(theirs.get(k), ours[k]) for k in ours}}
    if isinstance(theirs, list) and isinstance(ours, list):
        names = [each["name"] for each in ours]
        kept = [e for e in theirs if not isinstance(e, Mapping) or e.get("name") not in names]
        return kept + ours
    return ours


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is there twice")
    return table


# Writes clients' files, and undoes that: each write keeps a copy of the file before it.
#
# A copy is the folder `CLIENT/NUMBER`, with a record and, if there was a file, `before`. It is
# restored only over what was written: later changes are the user's.


class Changed(Exception):
    """A file is no longer as it was written; the text names its copy."""


class _Record(msgspec.Struct, frozen=True):
    file: str
    sha256: str
    made_folder: bool


class Copies:
    """The copies of all clients, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, client: str, path: Path, content: bytes, *, has_key: bool = False) -> None:
        """Keep a copy of a file, then replace its content. has_key: only the user may read it
        from now on. Raises OSError."""
        path = path.resolve()  # a link to the file stays a link
        numbers = [int(copy.name) for copy in (self._folder / client).glob("*")]
        copy = self._folder / client / str(max(numbers, default=0) + 1)
        copy.mkdir(parents=True, mode=0o700)
        if path.exists():
            shutil.copy2(path, copy / "before")
        is_new_folder = not path.parent.exists()
        record = _Record(str(path), hashlib.sha256(content).hexdigest(), is_new_folder)
        (copy / "record.json").write_bytes(msgspec.json.encode(record))
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path if path.exists() else None
        _replace(path, content, _mode(there) & (0o700 if has_key else 0o777))

    def undo(self, client: str) -> Iterator[Path]:
        """Restore what was there before, and yield each file. Raises Changed, OSError.

        Writes are undone from the last one back, up to one that the user has changed.
        """
        undone = set[str]()
        for copy in reversed(self._of(client)):
            record = msgspec.json.decode((copy / "record.json").read_bytes(), type=_Record)
            path = Path(record.file)
            now = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            if now != record.sha256:
                if record.file in undone:
                    continue
                raise Changed(f"{path} has changed since; the copy of before is in {copy}")
            _restore(path, copy / "before", record)
            shutil.rmtree(copy)
            undone.add(record.file)
            yield path

    def _of(self, client: str) -> list[Path]:
        copies = (self._folder / client).glob("*/record.json")
        return sorted((record.parent for record in copies), key=lambda copy: int(copy.name))


def _mode(path: Path | None) -> int:
    return 0o600 if path is None else stat.S_IMODE(path.stat().st_mode)


def _replace(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.picospec")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        partial.chmod(mode)
        file.write(content)
    partial.replace(path)


def _restore(path: Path, before: Path, record: _Record) -> None:
    if before.exists():
        _replace(path, before.read_bytes(), _mode(before))
        return
    path.unlink()
    if record.made_folder:
        with suppress(OSError):  # it has other files by now
            path.parent.rmdir()
