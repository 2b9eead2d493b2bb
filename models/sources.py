"""Sources of a model's bytes; each writes one file, and may resume an unfinished one.

No source is trusted: the store checks the sha256 of what it wrote. One that fails raises
SourceFailed, and the store tries the next.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import httpx

from models.catalogue import ModelFile
from models.errors import SourceFailed

Progress = Callable[[str, int, int], None]
"""It is called with the activity, the bytes done and the bytes in total."""

_CONNECT_S: Final = 3.0
"""A machine that cannot reach the hub should try the next source soon."""

_READ_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Source(Protocol):
    name: str

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        """Write the model to `partial`, which may hold its first bytes. Raises SourceFailed."""


class Folder:
    """A directory that holds the files under the catalogue's file names."""

    name = "folder"

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if self._folder is None:
            raise SourceFailed("no folder is set")
        source = self._folder / model.file
        if not source.is_file():
            raise SourceFailed(f"{source} does not exist")
        progress("copying", 0, model.bytes)
        shutil.copyfile(source, partial)


class Hub:
    """A model hub that serves files by HTTPS. `url` has {repository} and {file} in it."""

    name = "hub"

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        self._transport = transport

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if not model.repository:
            raise SourceFailed("the model has no repository on the hub")
        url = self._url.format(repository=model.repository, file=model.file)
        done = partial.stat().st_size if partial.exists() else 0
        if done >= model.bytes:
            return
        headers = {"Range": f"bytes={done}-"} if done else {}
        timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
        client = httpx.Client(timeout=timeout, follow_redirects=True, transport=self._transport)
        try:
            with client, client.stream("GET", url, headers=headers) as answer:
                if answer.status_code not in (200, 206):
                    raise SourceFailed(f"{url}: HTTP {answer.status_code}")
                with partial.open("ab" if answer.status_code == 206 else "wb") as file:
                    for chunk in answer.iter_bytes(_CHUNK_BYTES):
                        file.write(chunk)
                        progress("downloading", file.tell(), model.bytes)
        except httpx.HTTPError as error:
            raise SourceFailed(f"{url}: {error}") from error
