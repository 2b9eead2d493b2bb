"""Every file in configs/ is accepted by the service it is for, and holds the true defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import edge_agent.settings
import verifier.settings
from gateway.hosting.settings import ServiceSettings, as_environment
from picospec.up import read_settings
from verifier.vllm_target.conflicts import RULES

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS: dict[str, type[ServiceSettings]] = {
    "edge.toml": edge_agent.settings.EdgeSettings,
    "verifier.toml": verifier.settings.VerifierSettings,
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PICOSPEC_")]:
        monkeypatch.delenv(name)


def test_edge_toml_holds_the_edges_defaults() -> None:
    loaded = edge_agent.settings.load(CONFIGS / "edge.toml", {}, {})

    assert loaded.model_dump() == edge_agent.settings.load(None, {}, {}).model_dump()


def test_verifier_toml_holds_the_verifiers_defaults() -> None:
    loaded = verifier.settings.load(CONFIGS / "verifier.toml", {}, {})

    assert loaded.model_dump() == verifier.settings.load(None, {}, {}).model_dump()


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_setting_stands_in_the_file_of_its_service(
    name: str, kind: type[ServiceSettings]
) -> None:
    text = (CONFIGS / name).read_text()

    named = set(re.findall(r"^(?:# )?\[?(\w+)", text, re.MULTILINE))

    assert set(kind.model_fields) - set(kind.secrets) - {"verifier_url"} <= named


def test_local_toml_sets_up_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    put(read_settings(CONFIGS / "local.toml"), monkeypatch)

    edge = edge_agent.settings.load(None, {}, {})
    cloud = verifier.settings.load(None, {}, {})

    assert edge.draft_model == cloud.model == "qwen2.5-coder"
    assert (edge.slots, cloud.llama.slots) == (4, 4)


def test_local_vllm_toml_sets_up_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    put(read_settings(CONFIGS / "local-vllm.toml"), monkeypatch)

    edge = edge_agent.settings.load(None, {}, {})
    cloud = verifier.settings.load(None, {}, {})

    assert edge.draft_model == "qwen2.5-coder"
    assert (cloud.target, cloud.served_name) == ("vllm", "qwen2.5-coder-1.5b")
    assert cloud.vllm["max_num_seqs"] == edge.slots
    assert not {rule.option for rule in RULES} & cloud.vllm.keys()


def put(tables: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that `picospec up` sets for these tables."""
    for service in ("edge", "verifier"):
        for name, value in as_environment(service.upper(), tables[service]).items():
            monkeypatch.setenv(name, value)


def test_no_other_file_is_shipped_untested() -> None:
    shipped = {path.name for path in CONFIGS.iterdir()}

    assert shipped == {"edge.toml", "verifier.toml", "local.toml", "local-vllm.toml"}


def test_a_setting_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text('verifer_url = "http://127.0.0.1:9000"\n')

    with pytest.raises(ValueError, match="verifer_url"):
        edge_agent.settings.load(tmp_path / "edge.toml", {}, {})
