"""JSON files: written whole or not at all; a bad file's error names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def save(found: object, path: Path) -> None:
    """Write the file under another name, then rename it: an interrupted write harms nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    os.replace(partial, path)


def load(path: Path, kind: type[T]) -> T:
    """Read what `save` wrote. Raises OSError, or ValueError that names the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
