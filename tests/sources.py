"""The Python files of the rooms, which are the product's and the bench."""

from __future__ import annotations

from tests.edge_agent.processes import ROOT

ROOMS = ("bench", "edge_agent", "gateway", "local_models", "picospec", "speculation")
ROOMS += ("verifier",)
FILES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
