"""Finds the name and the file of the model that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from models.store import Store


def resolve(model: str, served_name: str | None, store: Store) -> tuple[str, Path]:
    """Return the name clients use and the path of the GGUF file.

    model: a path; or a name in the catalogue, of a pair (its target is meant), a variant or a
    model. Clients know a variant by its model's name. Raises UnknownModel or NotPulled.
    """
    path = Path(model)
    if path.suffix == ".gguf" or path.is_file():
        return served_name or path.stem, path
    catalogue = store.catalogue
    name = catalogue.pairs[model].target if model in catalogue.pairs else model
    return served_name or catalogue.recipe(name).model, store.path(name)
