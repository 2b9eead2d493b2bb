"""Stores files under their sha256 (blobs), and links that give them other names.

A blob gets its name once its hash is checked, and a link is made once its blob is complete, so
every named file is complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from gateway.system import lock
from local_models.catalogue import ModelFile
from local_models.digests import is_sha256
from local_models.errors import DiskFull, PullError, SourceFailed, WrongHash
from local_models.hub import Progress, Source, sha256_of
from local_models.llama_cpp.library import Quantisation, quantise

LOCK_S: Final = 7200.0
POLL_S: Final = 0.2
"""A pull waits LOCK_S seconds for another one, and looks every POLL_S. A killed process
releases the lock."""


class Blobs:
    """Keeps the blobs under `root`. Each is fetched from the first of `sources` that has it."""

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
                if source.where(model):  # it was announced
                    progress(reasons[-1], 0, 0)
                failure = WrongHash if isinstance(error, WrongHash) else failure
        raise failure(f"{model.file}: {'; '.join(reasons) or 'no sources'}")

    def write(self, source: Path, kind: Quantisation, progress: Progress) -> Path:
        """Write `source` in another quantisation, and return the blob. Raises CannotQuantise or
        NoLlama."""
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

    def exact_link(self, path: Path) -> Path:
        """Return the path of the exact weights made from a file; they may not exist."""
        if not path.exists():
            return path
        file = path.resolve()
        identity = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return self.root / "exact" / f"{path.stem}-{key}.gguf"

    def verify(self, link: Path) -> None:
        """Check the hash of a link's blob. If it is wrong, delete both and raise WrongHash."""
        blob = link.resolve()
        if self._owns(link) and (digest := sha256_of(blob)) != blob.name:
            blob.unlink()
            link.unlink()
            raise WrongHash(f"{link} had sha256 {digest}, not {blob.name}: pull it again")

    def drop(self, paths: Iterable[Path], models: Iterable[ModelFile] = ()) -> int:
        """Delete links and the exact weights made from them, then every blob without a link.

        A path that is not a link of the store is ignored. models: partial downloads of these
        are deleted too. Return the number of bytes freed.
        """
        for path in paths:
            for link in (self.exact_link(path), path):
                if self._owns(link):
                    link.unlink()
        named = {link.resolve() for link in self.root.rglob("*.gguf") if link.is_symlink()}
        unused = set(self._folder("blobs").resolve().iterdir()) - named
        unused |= {file for model in models for file in self._begun(model) if file.exists()}
        freed = sum(file.stat().st_size for file in unused)
        for file in unused:
            file.unlink()
        return freed

    def has_begun(self) -> bool:
        """Return True if there is a partial download."""
        return any(self._folder("partial").iterdir())

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of the store. A second pull waits for it, and then finds the files.

        Raises DiskFull if the disk becomes full in the body, and SourceFailed if another
        process holds the lock for LOCK_S.
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
        partial = self._partial(model)
        if not model.sha256:  # the source's file may have changed since a partial download
            partial.unlink(missing_ok=True)
        here = partial.stat().st_size if partial.exists() else 0
        self._make_room(model.file, model.bytes - here)
        if where := source.where(model):
            size = f", {model.bytes / 1e9:.2f} GB" if model.bytes else ""
            licence = f"licence {model.licence}" if model.licence else "no licence is named"
            progress(f"{model.file} from {where}{size}, {licence}", 0, 0)
        source.fetch(model, partial, progress)
        progress("checking", model.bytes, model.bytes)
        digest = sha256_of(partial)
        if model.sha256 and digest != model.sha256:
            partial.unlink()
            raise WrongHash(f"sha256 {digest}, not {model.sha256}")
        blob = partial.replace(self._folder("blobs") / digest)
        shutil.rmtree(self.root / "wheels" / digest, ignore_errors=True)
        return blob

    def _partial(self, model: ModelFile) -> Path:
        return self._folder("partial") / (model.sha256 or "unknown")

    def _begun(self, model: ModelFile) -> list[Path]:
        wheels = (self.root / "wheels" / model.sha256).glob("*.whl")
        return [self._partial(model), *wheels]

    def _owns(self, path: Path) -> bool:
        """Return True if a path is a link of the store, and not a file of the user."""
        return path.is_symlink() and self.root in path.parents

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
            return lock(file)
        time.sleep(POLL_S)
    raise SourceFailed(f"another process has been pulling models for {LOCK_S:g} s")


# Computes the SHA-256 of large files once, and remembers it while a file is unchanged.
#
# The name of a file in the store is its hash. It was checked when the file was fetched, and is
# checked again here, because the disk may have corrupted it since.

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
