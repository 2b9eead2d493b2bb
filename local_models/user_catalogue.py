"""The user's own catalogue: models.toml in the configuration directory.

It has the form of the shipped catalogue.toml. The directory is PICOSPEC_CONFIG_DIR, or else
picospec in XDG_CONFIG_HOME (~/.config). Edits preserve the rest of the file with comments.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit

from local_models.catalogue import Catalogue, ModelFile, Pair, parse_catalogue
from local_models.errors import InvalidCatalogue


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
