"""`picospec up` brings what it runs, and decides which engine and which draft model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from picospec.cli import preparing
from picospec.cli.preparing import ModelChoice, prepare, with_threads
from picospec.gateway.hosting.limits import Pins
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import UnknownModel
from picospec.models.gguf import is_exact
from picospec.models.store import Store, open_store
from tests.cli.screen import Screen
from tests.models.hub_server import FakeHub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    smollm = open_store({}).find("smollm2-135m", "draft").path.read_bytes()
    files = {"o/small-GGUF": {"small-Q4_1.gguf": smollm}, "o/safe": {"model.safetensors": b"0"}}
    with FakeHub(files).running() as running:
        yield running


@pytest.fixture
def store(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else object()
    )
    return open_store({
        "PICOSPEC_CACHE": str(tmp_path), "PICOSPEC_CONFIG_DIR": str(tmp_path),
        "PICOSPEC_MODEL_SOURCES": "hub", "HF_ENDPOINT": hub.endpoint,
    })  # fmt: skip


def test_options_win_over_the_environment_and_that_over_the_file() -> None:
    file = {"verifier": {"model": "t1", "target": "vllm"}, "edge": {"draft_model": "d1"}}
    environ = {"PICOSPEC_VERIFIER__MODEL": "t2", "PICOSPEC_EDGE__DRAFT_MODEL": "d2"}

    assert ModelChoice.of({}, {}) == ModelChoice("qwen2.5-coder", "auto", "")
    assert ModelChoice.of(file, {}) == ModelChoice("t1", "d1", "vllm")
    assert ModelChoice.of(file, environ) == ModelChoice("t2", "d2", "vllm")
    given = ModelChoice.of(file, environ, target="t3", draft=None)
    assert given == ModelChoice("t3", "d2", "vllm")


def test_threads_are_shared_where_cores_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "compute_threads", lambda: 5)

    assert with_threads({}, Pins()) == {
        "verifier": {"llama": {"threads": 3}},
        "edge": {"threads": 2},
    }
    given = {"edge": {"threads": 1}, "verifier": {"llama": {"threads": 4, "slots": 2}}}
    assert with_threads(given, Pins()) == given
    assert with_threads({}, Pins(frozenset({0}), frozenset({1}))) == {}


@pytest.mark.models
def test_a_target_of_the_hub_is_fetched_and_made_exact(store: Store) -> None:
    arguments = prepare(ModelChoice("o/small-GGUF", "none"), store, Screen())

    assert arguments["verifier"] == ("--target", "llama", "--model", "o/small-GGUF")
    assert arguments["edge"] == ("--draft", "none")
    found = store.find("o/small-GGUF", "target")
    assert found.name == "small"
    assert is_exact(found.path)


@pytest.mark.models
def test_a_path_is_taken_as_it_is_and_a_draft_as_large_is_not_chosen(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "mine.gguf"
    target.symlink_to(open_store({}).find("smollm2", "target").path)

    assert prepare(ModelChoice(str(target)), store, Screen()) == {
        "verifier": ("--target", "llama", "--model", str(target)),
        "edge": ("--draft", "none"),
    }


@pytest.mark.models
def test_safetensors_need_vllm_and_the_edge_chooses_its_draft(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (str(tmp_path), "o/safe", "hf://o/safe"):
        with pytest.raises(ServiceError, match="vLLM is not installed"):
            prepare(ModelChoice(target), store, Screen())

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    arguments = prepare(ModelChoice(str(tmp_path)), store, Screen())

    assert arguments["verifier"] == ("--target", "vllm", "--model", str(tmp_path))
    assert arguments["edge"] == ("--draft", "auto")


def test_an_unknown_name_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="gpt"):
        prepare(ModelChoice("gpt"), open_store({"PICOSPEC_CACHE": str(tmp_path)}), Screen())
