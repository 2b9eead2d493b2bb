"""Writes clients' files, and undoes that: each write keeps a copy of the file before it.

A copy is the folder `CLIENT/NUMBER`, with a record and, if there was a file, `before`. It is
restored only over what was written: later changes are the user's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec


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
