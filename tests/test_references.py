"""The pages that `make reference` writes, and the files in configs/, have what the code has."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from edge_agent.settings import EdgeSettings
from gateway.hosting.settings import as_environment
from picospec.configuration import SERVICES
from picospec.up import read_settings
from verifier.settings import VerifierSettings
from verifier.vllm_target.conflicts import RULES

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


# Every file in configs/ is accepted by the service it is for, and holds the true defaults.

CONFIGS: Final = ROOT / "configs"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PICOSPEC_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("service", SERVICES)
def test_the_file_of_a_service_has_every_setting_with_its_default(service: str) -> None:
    file, kind = CONFIGS / f"{service}.toml", SERVICES[service]

    named = set(re.findall(r"^(?:# )?\[?(\w+)", file.read_text(), re.MULTILINE))
    loaded, default = kind.load(file, {}, {}), kind.load(None, {}, {})

    assert set(kind.model_fields) - set(kind.secrets) - {"verifier_url"} <= named
    assert loaded.model_dump() == default.model_dump()


def test_local_toml_sets_up_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    put(read_settings(CONFIGS / "local.toml"), monkeypatch)

    edge = EdgeSettings.load(None, {}, {})
    cloud = VerifierSettings.load(None, {}, {})

    assert edge.draft_model == cloud.model == "qwen2.5-coder"
    assert (edge.slots, cloud.llama.slots) == (4, 4)


def test_local_vllm_toml_sets_up_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    put(read_settings(CONFIGS / "local-vllm.toml"), monkeypatch)

    edge = EdgeSettings.load(None, {}, {})
    cloud = VerifierSettings.load(None, {}, {})

    assert edge.draft_model == "qwen2.5-coder"
    assert (cloud.target, cloud.served_name) == ("vllm", "qwen2.5-coder-1.5b")
    assert cloud.vllm["max_num_seqs"] == edge.slots
    assert not {rule.option for rule in RULES} & cloud.vllm.keys()


def put(tables: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that `picospec up` sets for these tables."""
    for service in ("edge", "verifier"):
        for name, value in as_environment(service.upper(), tables[service]).items():
            monkeypatch.setenv(name, value)
