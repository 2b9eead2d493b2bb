"""A Catalogue, read from TOML, names models with their sources, variants, pairs, and families
of draft models for targets.

A variant is a model in another quantisation, and a Recipe says how the file of either is made.
A model is identified by its sha256, so its bytes may come from any source. The package ships
catalogue.toml; `user_catalogue` adds the user's entries, which have the same form.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec

from local_models.digests import file_path, repository_name, sha256_name, wheel_name
from local_models.errors import InvalidCatalogue, UnknownModel
from local_models.llama_cpp.library import Quantisation
from local_models.references import Role, parse_reference

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
