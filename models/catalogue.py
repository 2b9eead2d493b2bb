"""What can be pulled: models, the variants made of them, and pairs of draft and target.

A model is its sha256. A pair names two variants; a variant names its model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import msgspec

from models.errors import UnknownModel
from models.llama import Quantisation

SHIPPED: Final = "catalogue.toml"


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An archive that holds parts of a model."""

    file: str
    """name-version-py3-none-any.whl."""

    sha256: str

    @property
    def requirement(self) -> str:
        """The exact version, as package installers spell it."""
        name, version, *_ = self.file.split("-")
        return f"{name}=={version}"


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GGUF file, and where its bytes can be had."""

    file: str
    licence: str
    bytes: int
    sha256: str
    repository: str = ""
    """On the model hub."""

    wheels: tuple[Wheel, ...] = ()
    members: str = ""
    """Pattern of the parts inside the wheels."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model written in another quantisation, made here."""

    model: str
    quantisation: Quantisation


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of two variants (or models)."""

    draft: str
    target: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to get one GGUF file: a model, and the quantisation to write it in, if any."""

    name: str
    model: str
    file: ModelFile
    quantisation: Quantisation | None


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be pulled, by name."""

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
        """Tell how to get a model or a variant. Raises UnknownModel."""
        if name in self.models:
            return Recipe(name, name, self.models[name], None)
        if name in self.variants:
            variant = self.variants[name]
            base = self.recipe(variant.model)
            return Recipe(name, base.name, base.file, variant.quantisation)
        known = sorted([*self.models, *self.variants, *self.pairs])
        raise UnknownModel(f"no model {name!r}; there are {', '.join(known)}")

    def files(self, name: str) -> list[str]:
        """Return the names of the files that a model, variant or pair needs."""
        if name in self.pairs:
            return [self.pairs[name].draft, self.pairs[name].target]
        return [self.recipe(name).name]


def read(text: str) -> Catalogue:
    """Read a catalogue in TOML. Raises UnknownModel where it names what it does not have."""
    catalogue = msgspec.convert(tomllib.loads(text), Catalogue)
    for name in [*catalogue.variants, *catalogue.pairs]:
        for part in catalogue.files(name):
            catalogue.recipe(part)
    return catalogue


def shipped() -> Catalogue:
    """Return the catalogue that comes with the package."""
    return read(files("models").joinpath(SHIPPED).read_text("utf-8"))
