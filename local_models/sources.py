"""A source of a model's bytes writes one file, and may continue an unfinished one.

No source is trusted: the store checks the sha256 of the written file. If a source raises
SourceFailed, the store tries the next.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Protocol

from local_models.catalogue import ModelFile
from local_models.errors import SourceFailed
from local_models.progress import Progress


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Source(Protocol):
    name: str

    def where(self, model: ModelFile) -> str:
        """Return where this source would look for a model; empty if it has no such place."""

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        """Write the model to `partial`, which may hold its first bytes. Raises SourceFailed."""


class Folder:
    """Copies files from a directory, where they have the catalogue's file names."""

    name = "folder"

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def where(self, model: ModelFile) -> str:
        return str(self._folder / model.file) if self._folder else ""

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if self._folder is None:
            raise SourceFailed("no folder is set")
        source = self._folder / model.file
        if not source.is_file():
            raise SourceFailed(f"{source} does not exist")
        progress("copying", 0, model.bytes)
        shutil.copyfile(source, partial)
