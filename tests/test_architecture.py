"""docs/architecture.md names every room, files and imports that exist, and draws the layers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.edge_agent.processes import ROOT
from tests.guards import TESTS
from tests.sources import FILES, ROOMS

IMPORT = r"^ *(?:from|import) (tests[\w.]*)(?: import (\([^)]*\)|.*))?"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_every_room_is_named() -> None:
    places = TEXT.partition("## Where things live")[2].partition("## The walk")[0]
    named = re.findall(r"\w+", " ".join(re.findall(r"`[^`]*`", places)))

    rooms = {path.parent.name for path in FILES if path.name == "__init__.py"}

    assert rooms
    assert rooms <= set(named), rooms - set(named)


def test_every_file_that_it_names_exists() -> None:
    named = re.findall(r"`([a-z_/]+\.py)`", TEXT)

    missing = [name for name in named if not any(str(f).endswith(f"/{name}") for f in FILES)]

    assert named
    assert not missing


def test_each_arrow_of_the_walk_is_an_import() -> None:
    wrong, folder, count = [], Path(), 0
    walk = TEXT.partition("## The walk")[2].partition("## Where a")[0]
    for chain in re.findall(r"`[a-z_/0-9]+\.py`(?: → `[a-z_/0-9]+\.py`)+", walk):
        before = ""
        for name in re.findall(r"`([^`]+)`", chain):
            file = folder / name if (ROOT / folder / name).is_file() else Path(name)
            parent, leaf = ".".join(file.parent.parts), file.stem
            used = rf"from {parent}(\.{leaf} import|\b import .*\b{leaf}\b)"
            wrong += [chain] if before and not re.search(used, before) else []
            count, folder, before = count + 1, file.parent, (ROOT / file).read_text()

    assert count > 20
    assert wrong == []


def test_the_diagram_has_the_layers_of_the_import_rules() -> None:
    svg = (ROOT / "docs" / "architecture.svg").read_text()
    rows = dict[int, set[str]]()
    for y, room in re.findall(r'y="(\d+)"><tspan class="head">(\w+)/', svg):
        rows.setdefault(int(y), set()).add(room)

    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [set(re.findall(r"\w+", each)) for each in rules["contracts"][0]["layers"]]
    assert [rows[y] for y in sorted(rows)] == layers
    assert set.union(*layers) == set(ROOMS)


def test_it_is_read_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) <= 115


def test_no_test_file_is_imported() -> None:
    """What two of them use stands in a file beside them, and an import names it."""
    files = {path: path.relative_to(ROOT).with_suffix("") for path in TESTS.rglob("*.py")}
    modules = {".".join(path.parts) for path in files.values() if path.name[:5] == "test_"}
    wrong = []
    for file in files:
        for module, names in re.findall(IMPORT, file.read_text(), re.MULTILINE):
            imported = {module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))}
            wrong += [f"{file}: {each}" for each in imported & modules]

    assert modules
    assert wrong == []
