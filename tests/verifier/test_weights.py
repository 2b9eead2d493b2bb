"""A target on llama.cpp whose model is not here fetches it when it starts, and not before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from picospec.models.errors import UnknownModel
from picospec.verifier.app import make_target
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.settings import load
from tests.models.test_gguf_weights import Q8_0, gguf


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model of the user's catalogue, which the store does not have."""
    file = tmp_path / "toy.gguf"
    file.write_bytes(gguf(Q8_0))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "models.toml").write_text(
        f'[models.toy]\nfile = "toy.gguf"\nbytes = {file.stat().st_size}\nsha256 = "{sha256}"\n'
        'repository = "o/r"\n'
    )
    for name, value in {
        "CONFIG_DIR": tmp_path, "MODEL_FOLDER": tmp_path, "CACHE": tmp_path / "cache",
        "MODEL_SOURCES": "folder",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PICOSPEC_{name}", str(value))
    return file


def target(**settings: object) -> LlamaTarget:
    made = make_target(load(None, {}, settings), VerifierMetrics(CollectorRegistry()))
    assert isinstance(made, LlamaTarget)
    return made


def test_a_missing_model_is_fetched_at_the_start_and_the_log_shows_how_far_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = target(model="toy")
    assert not (tmp_path / "cache/models/blobs").exists()

    found = made._find()

    assert found.name == "toy"
    assert found.path.read_bytes() == model.read_bytes()
    assert "toy: copying 0 %" in capsys.readouterr().err
    made._find()
    assert capsys.readouterr().err == ""


def test_clients_call_it_as_the_settings_say(model: Path) -> None:
    assert target(model="toy", served_name="coder")._find().name == "coder"


def test_a_name_that_nobody_knows_is_an_error_at_once(model: Path) -> None:
    with pytest.raises(UnknownModel, match="nonsense"):
        target(model="nonsense")
