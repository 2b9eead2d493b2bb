"""The models that have names: shipped ones, the user's own, and references to a hub."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import msgspec
import tomlkit

from local_models.digests import file_path, repository_name, sha256_name, wheel_name
from local_models.errors import InvalidCatalogue, UnknownModel
from local_models.llama_cpp.library import Quantisation

# The catalogue has models, variants (a model in another quantisation), and pairs of these.
#
# A model is identified by its sha256, so its bytes may come from any source. The package ships
# a catalogue, and models.catalogue adds the user's entries, which have the same
# form.

Role = Literal["draft", "target"]
"""A model is used for this; a pair has one model for each."""

Name = Annotated[str, msgspec.Meta(pattern=r"^\w[\w.+-]*\Z", max_length=200)]
"""A model, variant or pair has this name in the catalogue. The store names files by it."""


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Wheel is a Python wheel that holds parts of a model."""

    file: str
    """The wheel has this file name, in the form name-version-py3-none-any.whl."""

    sha256: str

    def __post_init__(self) -> None:
        wheel_name(self.file)
        sha256_name(self.sha256)

    @property
    def requirement(self) -> str:
        """Return the exact version as a pip requirement."""
        name, version, *_ = self.file.split("-")
        return f"{name}=={version}"


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A ModelFile is one GGUF file, with the places where it can be fetched.

    Its fields may come from hubs and foreign catalogues, and the store makes paths of them, so
    names of another form are rejected. Raises ValueError.
    """

    file: str
    """The file has this name in its repository; a local file has this path."""

    licence: str = ""
    bytes: int = 0
    """The file has this size; 0 if unknown."""

    sha256: str = ""
    """The file has this hash; if it is empty, the hub's own is checked. A model in wheels must
    have it."""

    repository: str = ""
    """The model has this repository on the hub; empty if it has none."""

    vocabulary: str = ""
    """The model can draft for models with this same Vocabulary.digest; empty if unknown."""

    wheels: tuple[Wheel, ...] = ()
    members: str = ""
    """This glob pattern matches the model's parts inside the wheels."""

    def __post_init__(self) -> None:
        if self.wheels and not self.sha256:
            raise ValueError("a model in wheels needs its sha256")
        if self.sha256:
            sha256_name(self.sha256)
        if self.repository:
            repository_name(self.repository)
        if not self.local:
            file_path(self.file)

    @property
    def local(self) -> Path | None:
        """Return the path of a file that is on this machine; None if it must be fetched."""
        return None if self.repository or self.wheels else Path(self.file).expanduser()


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Variant is a model in another quantisation, which the store writes itself."""

    model: str
    quantisation: Quantisation


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Pair names its two models or variants."""

    draft: str
    target: str


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Family has repositories with small models of the vocabulary of some targets.

    Raises ValueError for a malformed pattern or reference.
    """

    targets: str
    """This pattern occurs in the names of the targets, in capitals or not."""

    drafts: tuple[str, ...]
    """These are references to the hub, in the order of trial."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets: {error}") from error
        if wrong := [each for each in self.drafts if parse_reference(each) is None]:
            raise ValueError(f"{wrong[0]} is no reference to a hub")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A Recipe makes the GGUF file `name`: fetch `file`, then quantise it unless None."""

    name: str
    model: str
    file: ModelFile
    quantisation: Quantisation | None


_TABLES: Final = ("models", "variants", "pairs")


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Catalogue has all that can be pulled, by name."""

    models: Mapping[Name, ModelFile] = {}
    variants: Mapping[Name, Variant] = {}
    pairs: Mapping[Name, Pair] = {}
    families: Mapping[str, Family] = {}
    """A user's family replaces the shipped one of its name."""

    @property
    def names(self) -> list[str]:
        return sorted(name for table in _TABLES for name in getattr(self, table))

    def part(self, name: str, role: Role) -> str:
        """Return the name of a pair's model or variant for a role; `name` if it is not a pair.

        Raises UnknownModel.
        """
        pair = self.pairs.get(name)
        return self.recipe(getattr(pair, role) if pair else name).name

    def recipe(self, name: str) -> Recipe:
        """Return the recipe for the file of a model or variant. Raises UnknownModel."""
        if model := self.models.get(name):
            return Recipe(name, name, model, None)
        variant = self.variants.get(name)
        if variant and (base := self.models.get(variant.model)):
            return Recipe(name, variant.model, base, variant.quantisation)
        name = variant.model if variant else name
        raise UnknownModel(f"no model {name!r}; there are {', '.join(self.names)}")

    def files(self, name: str) -> list[str]:
        """Return the names of the models and variants that a model, variant or pair needs."""
        pair = self.pairs.get(name)
        return [pair.draft, pair.target] if pair else [self.recipe(name).name]

    def made_of(self, model: str) -> list[Recipe]:
        """Return the recipes of a model's variants."""
        return [self.recipe(name) for name, of in self.variants.items() if of.model == model]

    def drafts_of(self, target: str) -> list[str]:
        """Return the draft models of all pairs with this target, by its name or its model's."""
        of_pairs = [(pair.draft, self.recipe(pair.target)) for pair in self.pairs.values()]
        return [draft for draft, of in of_pairs if target in (of.name, of.model)]

    def siblings_of(self, target: str) -> list[str]:
        """Return the references of the families that a target's name belongs to."""
        named = [
            each for each in self.families.values() if re.search(f"(?i){each.targets}", target)
        ]
        return [draft for family in named for draft in family.drafts]

    def __or__(self, other: Self) -> Self:
        """Return the union, checked. Raises InvalidCatalogue for a name that both define."""
        if twice := set(self.names) & set(other.names):
            raise InvalidCatalogue(f"{min(twice)} is a name of the built-in catalogue")
        tables = {name: {**getattr(self, name), **getattr(other, name)} for name in _TABLES}
        families = {**self.families, **other.families}
        return type(self)(**tables, families=families).checked()

    def checked(self) -> Self:
        """Return the catalogue. Raises UnknownModel if an entry refers to an undefined name."""
        for name in [*self.variants, *self.pairs]:
            for part in self.files(name):
                self.recipe(part)
        return self


def parse_catalogue(text: str) -> Catalogue:
    """Parse a TOML catalogue, which may refer to names of another. Raises InvalidCatalogue."""
    try:
        return msgspec.convert(tomllib.loads(text), Catalogue)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidCatalogue(str(error)) from error


def shipped() -> Catalogue:
    """Return the catalogue that comes with the package."""
    return parse_catalogue(
        files("local_models").joinpath("catalogue.toml").read_text("utf-8")
    ).checked()


# Parses a user's reference to a model on the hub, and chooses a file of its repository.
#
# owner/repo                   the file whose quantisation suits the model's use best
# owner/repo:Q4_K_M            the file of that quantisation
# hf://owner/repo/file.gguf    that very file
# hf://owner/repo              a directory of safetensors for vLLM, or else as owner/repo

PREFERRED: Final[Mapping[Role, Sequence[str]]] = {
    "target": ["Q8_0", "BF16", "F16", "F32", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0"],
    "draft": [
        "Q4_0",
        "Q4_K_M",
        "Q4_K_S",
        "Q4_1",
        "Q5_K_M",
        "Q6_K",
        "Q8_0",
        "F16",
        "BF16",
        "F32",
    ],
}
"""These quantisations are looked for, best first. A target is judged with Q8_0 weights, which
the store makes from other ones, so the files that lose least in this come first. A draft model
needs speed: Q4_0 drafts as well as Q4_K_M, in two thirds of the time."""

_QUANTISATION: Final = re.compile(r"(?i)[-._/]((?:IQ|TQ|Q)\d\w*|BF16|F16|F32|MXFP4\w*)\.gguf$")
_REFERENCE: Final = re.compile(
    r"(?P<scheme>hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?::(?P<quantisation>\w+)|/(?P<file>.+))?"
)
_NO_MODEL: Final = re.compile(r"(?i)(^|/)(mmproj|imatrix)")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


_File = TypeVar("_File")


@dataclass(frozen=True, slots=True)
class HubReference:
    """Names a file of a repository; without a file or a quantisation, the best for a role."""

    repository: str
    quantisation: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """Return the repository's name without owner and suffix of GGUF repositories."""
        return re.sub(r"(?i)[-.]gguf$", "", self.repository.partition("/")[2])

    def choose(self, files: Collection[str], role: Role) -> str:
        """Return which of a repository's GGUF files this means. Raises UnknownModel."""
        whole = {each for each in files if not (_PART.search(each) or _NO_MODEL.search(each))}
        if self.file in whole:
            return self.file
        tags = (self.quantisation,) if self.quantisation else PREFERRED[role]
        for tag in () if self.file else tags:
            match [file for file in whole if quantisation_of(file) == tag.upper()]:
                case [file]:
                    return file
                case [_, *_] as several:
                    raise UnknownModel(f"{self}: {_listed(several)} are {tag}; use hf://…/FILE")
        if len(whole) == 1 and not (self.file or self.quantisation):
            return whole.pop()
        split = " (files in several parts are not read)" if len(whole) < len(files) else ""
        raise UnknownModel(f"{self} is not there; there are {_listed(whole) or 'none'}{split}")

    def select(self, files: Mapping[str, _File]) -> list[_File]:
        """Return the files that this may mean for any role. files: a mapping by file name."""
        kind = self.quantisation.upper()
        return [
            file
            for name, file in files.items()
            if self.file in ("", name) and kind in ("", quantisation_of(name))
        ]

    def __str__(self) -> str:
        if self.file:
            return f"hf://{self.repository}/{self.file}"
        return ":".join(filter(None, (self.repository, self.quantisation)))


def parse_reference(text: str) -> HubReference | None:
    """Parse a reference. Return None for another form, such as a name or a path."""
    match = _REFERENCE.fullmatch(text)
    if match is None or (match["file"] and not match["scheme"]):
        return None
    return HubReference(match["repository"], match["quantisation"] or "", match["file"] or "")


def quantisation_of(file: str) -> str:
    """Return the quantisation in a file's name, in capitals; empty if there is none."""
    match = _QUANTISATION.search(f"/{file}")
    return match[1].upper() if match else ""


def _listed(files: Collection[str]) -> str:
    return ", ".join(sorted(files))


# The user's own catalogue is models.toml in the configuration directory.
#
# It has the form of the shipped catalogue.toml. The directory is PICOSPEC_CONFIG_DIR, or
# else picospec in XDG_CONFIG_HOME (~/.config). Edits preserve the rest of the file with
# comments.


def user_file(environment: Mapping[str, str]) -> Path:
    """Return the path of the user's catalogue, which may not exist."""
    base = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    own = environment.get("PICOSPEC_CONFIG_DIR")
    return (Path(own) if own else Path(base) / "picospec") / "models.toml"


class UserCatalogue:
    """Reads and writes the catalogue in `file`. A missing file counts as empty."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> Catalogue:
        """Return its entries. Raises InvalidCatalogue, which names the file."""
        try:
            return parse_catalogue(self._text())
        except InvalidCatalogue as error:
            raise InvalidCatalogue(f"{self.file}: {error}") from error

    def add(self, name: str, model: ModelFile, pairs: Mapping[str, Pair]) -> None:
        """Write a model and pairs with it. They replace entries with their names.

        Raises InvalidCatalogue or OSError, and then leaves the file unchanged.
        """
        document = tomlkit.parse(self._text())
        _table(document, "models")[name] = msgspec.to_builtins(model)
        for pair, parts in pairs.items():
            _table(document, "pairs")[pair] = msgspec.to_builtins(parts)
        self._write(document)

    def remove(self, name: str) -> None:
        """Delete the entry of this name, and the variants and pairs that use it."""
        document = tomlkit.parse(self._text())
        for kind in ("models", "variants", "pairs"):
            entries = _table(document, kind)
            for entry in [each for each, of in entries.items() if name in (each, *_parts(of))]:
                del entries[entry]
            if not entries:
                del document[kind]
        self._write(document)

    def _text(self) -> str:
        return self.file.read_text("utf-8") if self.file.exists() else ""

    def _write(self, document: tomlkit.TOMLDocument) -> None:
        text = tomlkit.dumps(document)
        parse_catalogue(text)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".fresh")
        fresh.write_text(text, "utf-8")
        fresh.replace(self.file)


def _table(document: tomlkit.TOMLDocument, kind: str) -> MutableMapping[str, Any]:
    """Return the table of a kind's entries, and create it if it is missing."""
    table: MutableMapping[str, Any] = document.setdefault(
        kind, tomlkit.table(is_super_table=True)
    )
    return table


def _parts(entry: Mapping[str, object]) -> list[object]:
    """Return the names that a variant or a pair refers to."""
    return [entry.get(part) for part in ("model", "draft", "target")]
