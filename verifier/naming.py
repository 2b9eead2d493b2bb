"""From what the settings call a model to its name and its file."""

from __future__ import annotations

from pathlib import Path


def resolve(model: str, served_name: str | None) -> tuple[str, Path]:
    """Return the name clients use and the path of the GGUF file.

    model: a path, or a pair in the catalogue, whose target is meant.
    """
    path = Path(model)
    return served_name or path.stem, path
