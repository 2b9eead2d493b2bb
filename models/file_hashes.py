"""The SHA-256 of large files, each read once: the hash is kept for the file as it is.

A file of the store has its hash for a name. It was checked when the file was fetched, and is
checked again here, because a disk may have changed it since.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from picospec.models.digests import is_sha256
from picospec.models.errors import WrongHash
from picospec.models.fetching.sources import sha256_of

SLOW_BYTES: Final = 1 << 28
"""Reading a file of this size or more is logged: it takes a second or more."""

Kept = dict[str, tuple[list[int], str]]
"""What is kept by path: the file's size, time of change and inode, and the hash of the file
that had these."""


class FileHashes:
    """kept: the file in which hashes are kept; None for nowhere."""

    def __init__(self, kept: Path | None = None) -> None:
        self._kept = kept

    def of(self, file: Path) -> str:
        """Return a file's hash in hexadecimal. Raises OSError, and WrongHash for a blob of the
        store that is not what it was."""
        real = file.resolve()
        status = real.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        before, found = self._read().get(str(real), ([], ""))
        if before == state:
            return found
        if status.st_size >= SLOW_BYTES:
            log = structlog.get_logger("models")
            log.info("the weights are hashed, once", path=str(file), bytes=status.st_size)
        found = sha256_of(real)
        if is_sha256(real.name) and found != real.name:
            raise WrongHash(f"{file} has changed: its hash is {found}, not {real.name}")
        self._keep(self._read() | {str(real): (state, found)})
        return found

    def _read(self) -> Kept:
        if self._kept is None:
            return {}
        try:
            return msgspec.json.decode(self._kept.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return {}  # there is none yet, or it is of no use: the files are read again

    def _keep(self, hashes: Kept) -> None:
        """Write hashes, whole or not at all; where that is not possible nothing is kept."""
        if self._kept is None:
            return
        fresh = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
        with suppress(OSError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(hashes))
            fresh.replace(self._kept)
