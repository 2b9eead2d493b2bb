"""A target on llama.cpp whose model is not here fetches it when it starts, and not before."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from picospec.models.errors import UnknownModel
from picospec.models.llama_cpp.model import Context, Model, Segment
from picospec.models.store import open_store
from picospec.models.vocabulary import relate
from picospec.verifier.app import make_target
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.settings import load
from tests.models.byte_model import pad
from tests.models.test_gguf import Q8_0, gguf
from tests.verifier.served_llama import job_of, plain, serving


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


# A padded vocabulary: no id past the tokens is ever drawn, and the text stays what it was.

PROMPT = "Count from one to twenty."


@pytest.fixture(scope="module")
def unpadded() -> Path:
    return open_store(os.environ).find("smollm2", "target").path


@pytest.fixture(scope="module")
def padded(unpadded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("padded") / "padded.gguf"
    pad(unpadded, target)
    return target


async def answer(path: Path, temperature: float) -> tuple[list[int], int]:
    """Return the tokens of an answer, and the target's padding."""
    async with serving(path) as host:
        tokens = await plain(host, job_of(host, PROMPT, temperature))
        return tokens, host.ready().facts.padding


@pytest.mark.models
def test_without_the_mask_padding_would_always_be_drawn(padded: Path) -> None:
    with closing(Model(padded)) as model, closing(Context(model, 128)) as context:
        tokens = len(model.vocabulary.pieces)
        context.decode([Segment(0, 0, model.tokenize(PROMPT, False))])
        likeliest = [int(np.argmax(context.logits(row))) for row in range(4)]

    assert model.vocabulary.padding == tokens
    assert all(token >= tokens for token in likeliest)


@pytest.mark.models
def test_a_padded_model_pairs_with_the_unpadded_one(padded: Path, unpadded: Path) -> None:
    wide, narrow = (Model(path, vocabulary_only=True).vocabulary for path in (padded, unpadded))

    assert (relate(wide, narrow), relate(narrow, wide)) == ("padded", "padded")


@pytest.mark.models
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_text_is_that_of_the_unpadded_model(
    padded: Path, unpadded: Path, temperature: float
) -> None:
    expected, none = await answer(unpadded, temperature)
    tokens, padding = await answer(padded, temperature)

    assert (none, padding) == (0, 49152)
    assert tokens == expected
