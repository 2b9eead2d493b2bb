"""docs/architecture.md names every room, and files that exist."""

from __future__ import annotations

import re

from tests.edge_agent.processes import ROOT

ROOMS = ("bench", "edge_agent", "gateway", "local_models", "picospec", "speculation")
ROOMS += ("verifier",)
TEXT = (ROOT / "docs" / "architecture.md").read_text()
FILES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


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


def test_it_is_read_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) <= 115
