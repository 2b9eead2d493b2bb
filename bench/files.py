"""Reads and writes JSON files. Writes are atomic, and the error of a bad file names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def save(value: object, path: Path) -> None:
    """Write the file under another name, then rename it, so that a cut write harms nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
    os.replace(partial, path)


def load(path: Path, kind: type[T]) -> T:
    """Read a file of `save`. Raises OSError, or a ValueError that names the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
