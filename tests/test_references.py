"""The pages of docs/ that `make reference` writes have what the code has."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from edge_agent.settings import EdgeSettings
from verifier.settings import VerifierSettings

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("edge_agent", "gateway", "local_models", "picospec", "speculation", "verifier")
PAGES: Final = runpy.run_path(str(ROOT / "scripts/reference.py"))["PAGES"]


def named(pattern: str) -> Iterator[str]:
    """Yield what the product's code names by such a pattern."""
    for file in (each for room in ROOMS for each in (ROOT / room).rglob("*.py")):
        yield from re.findall(pattern, file.read_text())


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_is_as_the_classes_are(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run: make reference"


def test_each_setting_is_there_and_has_a_meaning() -> None:
    page = PAGES["settings.md"]()
    rows = [line for line in page.splitlines() if line.startswith("| `")]

    for kind in (EdgeSettings, VerifierSettings):
        for name in kind.model_fields.keys() - kind.secrets.keys():
            assert re.search(rf"\| `{name}(`|\.|\[\]\.)", page)
    assert [row for row in rows if row.endswith("|  |")] == []


def test_each_variable_that_the_code_names_is_in_the_reference() -> None:
    prefixes = {"PICOSPEC_EDGE", "PICOSPEC_VERIFIER"}
    variables = set(named(r"PICOSPEC_[A-Z]+(?:_[A-Z]+)*(?![A-Z_])")) - prefixes

    page = (ROOT / "docs/settings.md").read_text()
    assert len(variables) >= 10
    assert {each for each in variables if f"`{each}`" not in page} == set()


def test_each_metric_that_the_code_names_is_in_the_reference() -> None:
    metrics = {each for each in named(r'"(picospec:[a-z_]+)"') if not each.endswith("_")}

    page = (ROOT / "docs/metrics.md").read_text()
    assert len(metrics) > 10
    assert {each for each in metrics if each not in page} == set()
