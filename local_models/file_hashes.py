"""Computes the SHA-256 of large files once, and remembers it while a file is unchanged.

The name of a file in the store is its hash. It was checked when the file was fetched, and is
checked again here, because the disk may have corrupted it since.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from local_models.digests import is_sha256
from local_models.errors import WrongHash
from local_models.sources import sha256_of

SLOW_BYTES: Final = 1 << 28
"""Hashing a file of this size or more is logged, because it takes a second or more."""

Kept = dict[str, tuple[list[int], str]]
"""Maps a path to the size, modification time and inode of its file, and the hash of the file
that had these."""


class FileHashes:
    """Keeps hashes of files. kept: the file that stores them; None stores none."""

    def __init__(self, kept: Path | None = None) -> None:
        self._kept = kept

    def of(self, file: Path) -> str:
        """Return a file's hash in hexadecimal. Raises OSError, or WrongHash for a blob of the
        store that has changed."""
        real = file.resolve()
        status = real.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        before, digest = self._read().get(str(real), ([], ""))
        if before == state:
            return digest
        if status.st_size >= SLOW_BYTES:
            log = structlog.get_logger("models")
            log.info("the weights are hashed, once", path=str(file), bytes=status.st_size)
        digest = sha256_of(real)
        if is_sha256(real.name) and digest != real.name:
            raise WrongHash(f"{file} has changed: its hash is {digest}, not {real.name}")
        self._keep(self._read() | {str(real): (state, digest)})
        return digest

    def _read(self) -> Kept:
        if self._kept is None:
            return {}
        try:
            return msgspec.json.decode(self._kept.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return {}  # the file is missing or damaged: everything is hashed again

    def _keep(self, hashes: Kept) -> None:
        """Write hashes atomically. If that is not possible, nothing is stored."""
        if self._kept is None:
            return
        fresh = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
        with suppress(OSError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(hashes))
            fresh.replace(self._kept)
