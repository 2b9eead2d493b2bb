"""Files named by their sha256, and the links that give them other names.

A blob gets its name once its hash is checked, and a link is made once its blob is complete; so
whatever has a name is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from models.catalogue import ModelFile
from models.errors import DiskFull, PullError, SourceFailed, WrongHash
from models.fetching.sources import Progress, Source, sha256_of
from models.llama import Quantisation, quantise

LOCK_S: Final = 7200.0
POLL_S: Final = 0.2
"""How long a pull waits for another one, and between two looks, in seconds. A process that is
killed lets the lock go."""


class Blobs:
    """The blobs under `root`, fetched from the first of `sources` that has them."""

    def __init__(self, root: Path, sources: Sequence[Source]) -> None:
        self.root = root
        self._sources = sources

    def fetch(self, model: ModelFile, progress: Progress) -> Path:
        """Return the model's blob. Raises PullError."""
        blob = self.root / "blobs" / model.sha256
        if model.sha256 and blob.exists():
            return blob
        reasons: list[str] = []
        failure: type[PullError] = SourceFailed
        for source in self._sources:
            try:
                return self._fetch_from(source, model, progress)
            except (SourceFailed, WrongHash) as error:
                reasons.append(f"{source.name}: {error}")
                failure = WrongHash if isinstance(error, WrongHash) else failure
        raise failure(f"{model.file}: {'; '.join(reasons) or 'no sources'}")

    def write(self, source: Path, kind: Quantisation, progress: Progress) -> Path:
        """Return the blob of `source` in another quantisation. Raises CannotQuantise."""
        size = source.stat().st_size
        self._make_room(source.name, size)
        progress(f"writing {kind}", 0, size)
        partial = self._folder("partial") / f"{source.stem}-{kind}.gguf"
        quantise(source, partial, kind)
        return partial.replace(self._folder("blobs") / sha256_of(partial))

    def link(self, link: Path, blob: Path) -> Path:
        """Give a blob a name, atomically: readers see the old blob or the new one."""
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_suffix(".fresh")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(blob, link.parent))
        return fresh.replace(link)

    def drop(self, links: Sequence[Path]) -> int:
        """Delete links, and then every blob that has no link; return the bytes freed."""
        for link in links:
            link.unlink(missing_ok=True)
        named = {link.resolve() for link in self.root.rglob("*.gguf") if link.is_symlink()}
        unused = set(self._folder("blobs").resolve().iterdir()) - named
        freed = sum(blob.stat().st_size for blob in unused)
        for blob in unused:
            blob.unlink()
        return freed

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock: a second pull waits for it, and then finds the files.

        Raises DiskFull where the disk fills up meanwhile, SourceFailed when another process
        holds the lock for LOCK_S.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as file:
            _lock(file)
            try:
                yield
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                reason = "no space is left; what was fetched is kept for the next pull"
                raise DiskFull(reason) from error

    def _fetch_from(self, source: Source, model: ModelFile, progress: Progress) -> Path:
        partial = self._folder("partial") / (model.sha256 or "unknown")
        if not model.sha256:  # the source may have another file now than when it was begun
            partial.unlink(missing_ok=True)
        here = partial.stat().st_size if partial.exists() else 0
        self._make_room(model.file, model.bytes - here)
        source.fetch(model, partial, progress)
        progress("checking", model.bytes, model.bytes)
        found = sha256_of(partial)
        if model.sha256 and found != model.sha256:
            partial.unlink()
            raise WrongHash(f"sha256 {found}, not {model.sha256}")
        blob = partial.replace(self._folder("blobs") / found)
        shutil.rmtree(self.root / "wheels" / found, ignore_errors=True)
        return blob

    def _make_room(self, name: str, needed: int) -> None:
        if needed > (free := shutil.disk_usage(self.root).free):
            raise DiskFull(f"{name} needs {needed} bytes, {free} are free")

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _lock(file: IO[str]) -> None:
    """Lock a file. Raises SourceFailed."""
    for _ in range(round(LOCK_S / POLL_S)):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(POLL_S)
    raise SourceFailed(f"another process has been pulling models for {LOCK_S:g} s")
