"""The models on this machine: blobs named by their sha256, and names that link to them.

    blobs/SHA256         whole files, checked before they got this name
    names/NAME.gguf      links into blobs
    partial/SHA256       a file on its way; wheels/SHA256/ the wheels it is made of

* A name links to a blob or does not exist: what is unfinished never has a name.
* What was fetched survives an interruption and is taken up by the next pull; what has the
  wrong sha256 is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.catalogue import Catalogue, ModelFile, Pair, Recipe
from models.errors import DiskFull, NotPulled, PullError, SourceFailed, WrongHash
from models.hashing import sha256_of
from models.quantize import quantize
from models.sources import Progress, Source


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the catalogue, and its file if it has been pulled."""

    name: str
    path: Path | None
    bytes: int
    """Of the file here; of the model to download, if it is not."""


class Store:
    """Models under `root`. sources: tried in order."""

    def __init__(self, root: Path, catalogue: Catalogue, sources: Sequence[Source]) -> None:
        self.root = root
        self.catalogue = catalogue
        self._sources = sources

    def path(self, name: str) -> Path:
        """Return the file of a model or variant. Raises UnknownModel or NotPulled."""
        link = self._link(self.catalogue.recipe(name).name)
        if not link.exists():
            raise NotPulled(f"{name} is not here; run: picospec models pull {name}")
        return link

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the files of a pair: draft, target. Raises UnknownModel or NotPulled."""
        pair: Pair = self.catalogue.pair(name)
        return self.path(pair.draft), self.path(pair.target)

    def entries(self) -> list[Entry]:
        """Return every model and variant of the catalogue."""
        return [
            self._entry(name) for name in (*self.catalogue.models, *self.catalogue.variants)
        ]

    def pull(self, name: str, progress: Progress) -> list[Path]:
        """Bring a model, a variant or a pair here, and return the files.

        Raises UnknownModel, CannotQuantise or PullError.
        """
        recipes = [self.catalogue.recipe(part) for part in self.catalogue.files(name)]
        with self._alone(), _disk_full():
            return [self._obtain(recipe, progress) for recipe in recipes]

    def verify(self, name: str) -> None:
        """Read every file of a name again. Raises NotPulled; WrongHash, deleting the file."""
        for part in self.catalogue.files(name):
            blob = self.path(part).resolve()
            recipe = self.catalogue.recipe(part)
            expected = recipe.file.sha256 if recipe.quantisation is None else blob.name
            if (found := sha256_of(blob)) != expected:
                blob.unlink()
                raise WrongHash(f"{part} had sha256 {found}, not {expected}: pull it again")

    def _obtain(self, recipe: Recipe, progress: Progress) -> Path:
        link = self._link(recipe.name)
        if link.exists():
            return link
        if recipe.quantisation is None:
            return self._name(recipe.name, self._fetch(recipe.file, progress))
        base = self._obtain(self.catalogue.recipe(recipe.model), progress)
        progress(f"writing {recipe.quantisation}", 0, recipe.file.bytes)
        unnamed = self._folder("partial") / f"{recipe.name}.gguf"
        quantize(base, unnamed, recipe.quantisation)
        return self._name(recipe.name, self._keep(unnamed, sha256_of(unnamed)))

    def _fetch(self, model: ModelFile, progress: Progress) -> Path:
        """Return the model's blob, from the first source that has it. Raises PullError."""
        blob = self._folder("blobs") / model.sha256
        if blob.exists():
            return blob
        failures: list[PullError] = []
        for source in self._sources:
            try:
                return self._fetch_from(source, model, progress)
            except (SourceFailed, WrongHash) as error:
                failures.append(error)
                error.add_note(source.name)
        reasons = "; ".join(f"{error.__notes__[0]}: {error}" for error in failures)
        wrong = any(isinstance(error, WrongHash) for error in failures)
        raise (WrongHash if wrong else SourceFailed)(f"{model.file}: {reasons or 'no sources'}")

    def _fetch_from(self, source: Source, model: ModelFile, progress: Progress) -> Path:
        partial = self._folder("partial") / model.sha256
        there = partial.stat().st_size if partial.exists() else 0
        free = shutil.disk_usage(self.root).free
        if free < model.bytes - there:
            raise DiskFull(f"{model.file} needs {model.bytes - there} bytes, {free} are free")
        source.fetch(model, partial, progress)
        progress("checking", model.bytes, model.bytes)
        if (found := sha256_of(partial)) != model.sha256:
            partial.unlink()
            raise WrongHash(f"sha256 {found}, not {model.sha256}")
        blob = self._keep(partial, model.sha256)
        shutil.rmtree(self.root / "wheels" / model.sha256, ignore_errors=True)
        return blob

    def _keep(self, file: Path, sha256: str) -> Path:
        return file.replace(self._folder("blobs") / sha256)

    def _name(self, name: str, blob: Path) -> Path:
        """Link a name to a blob, at once: a reader sees the old link, or the new one."""
        link = self._link(name)
        fresh = link.with_suffix(".fresh")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("..") / "blobs" / blob.name)
        return fresh.replace(link)

    def _entry(self, name: str) -> Entry:
        link = self._link(name)
        if link.exists():
            return Entry(name, link, link.stat().st_size)
        return Entry(name, None, self.catalogue.recipe(name).file.bytes)

    def _link(self, name: str) -> Path:
        return self.root / "names" / f"{name}.gguf"

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the store's lock: a second pull waits, and then finds the files here."""
        self._folder("names")
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            "no space is left; what was fetched is kept for the next pull"
        ) from error
