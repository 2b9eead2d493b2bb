"""Verifiers have one identity if their texts are the same, as far as can be known; a model that
is not here is fetched when its target starts, and not before.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.drain import Drain
from gateway.errors import Unavailable
from local_models.errors import CannotOpen, UnknownModel
from local_models.file_hashes import FileHashes
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from local_models.store import StoredModel, open_store
from local_models.vocabulary import relate
from speculation.model_facts import Limits
from tests.guards import GUARD_S
from tests.local_models.conftest import pad
from tests.local_models.gguf_files import Q8_0, gguf_header
from tests.verifier.fake_target import FakeTarget
from tests.verifier.served_llama import job_of, plain, serving
from verifier import host, identity
from verifier.app import make_target
from verifier.host import Host
from verifier.identity import identity_of
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import VerifierMetrics
from verifier.settings import LlamaSettings, load
from verifier.vllm_target.serving.target import VllmTarget

SIZE = 3_000_000


def weights(path: Path, changed: int | None = None) -> Path:
    """Write a file, of which one byte may be another."""
    data = bytearray(Random(1).randbytes(SIZE))
    if changed is not None:
        data[changed] ^= 1
    path.write_bytes(data)
    return path


def weights_of(path: Path) -> object:
    return identity.weights_of(path, FileHashes())


def test_the_same_weights_elsewhere_are_the_same(tmp_path: Path) -> None:
    one, other = weights(tmp_path / "a.gguf"), weights(tmp_path / "b.gguf")

    assert weights_of(one) == weights_of(other)


@pytest.mark.parametrize("changed", [0, 4096, SIZE // 3, SIZE - 5000, SIZE - 1])
def test_weights_that_differ_in_a_bit_differ(tmp_path: Path, changed: int) -> None:
    one, other = weights(tmp_path / "a.gguf"), weights(tmp_path / "b.gguf", changed)

    assert weights_of(one) != weights_of(other)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_directory_is_known_by_what_shapes_a_text(tmp_path: Path, file: str) -> None:
    weights(tmp_path / file)
    before = weights_of(tmp_path)
    (tmp_path / "README.md").write_text("new")

    assert weights_of(tmp_path) == before
    weights(tmp_path / file, changed=5000)
    assert weights_of(tmp_path) != before


@pytest.mark.parametrize(
    "other", [("w", 2, Limits()), ("w", 1, Limits(max_ahead=64)), ("v", 1)]
)
def test_any_part_shapes_the_identity(other: tuple[object, ...]) -> None:
    assert identity_of("w", 1, Limits()) == identity_of("w", 1, Limits())
    assert identity_of(*other) != identity_of("w", 1, Limits())


@dataclass(frozen=True)
class Known:
    """What an engine says of a model in a repository."""

    download_dir: str | None = None
    revision: str | None = None
    model: str = "o/r"


def shapes(**known: str) -> object:
    """What tells the weights of a repository on vLLM, and what the log says of it."""
    metrics = VerifierMetrics(CollectorRegistry())
    model = Known(**known)
    engine = SimpleNamespace(model=model, download_dir=model.download_dir)
    made = VllmTarget("m", engine, Limits(), metrics)  # type: ignore[arg-type]
    with capture_logs() as logs:
        return made._weights(), [line["log_level"] for line in logs]


def commit(cache: Path, number: str, branch: str = "main") -> None:
    """Put a commit into a cache of repositories, as the hub's library does."""
    folder = cache / "models--o--r"
    (folder / "snapshots" / number).mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(number)


def test_a_repository_on_vllm_is_known_by_the_commit_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    old, new = "a" * 40, "b" * 40
    commit(tmp_path / "usual", old)
    commit(tmp_path / "own", new)
    commit(tmp_path / "own", old, branch="v1")
    own = str(tmp_path / "own")

    assert shapes() == (("o/r", old), [])
    assert shapes(download_dir=own) == (("o/r", new), [])
    assert shapes(download_dir=own, revision="v1") == (("o/r", old), [])
    assert shapes(download_dir=own, revision=old) == (("o/r", old), [])
    assert shapes(revision="elsewhere") == (("o/r", None), ["warning"])


# A target's life: what the service does when it is lost.


async def test_a_target_that_is_lost_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CHECK_S", 0.01)
    target, drain = FakeTarget(), Drain()
    served = Host(target, drain)
    async with served.running():
        await asyncio.sleep(0.03)
        assert served.ready() is target
        served.check()
        assert not drain.begun

        target.alive = False

        async with asyncio.timeout(5.0):
            await drain.over.wait()
        with pytest.raises(Unavailable, match="failed"):
            served.ready()
        with pytest.raises(Unavailable, match="failed"):
            served.check()
    assert target.stopped
    assert served.state == "failed"


async def test_a_pass_that_does_not_end_ends_the_service() -> None:
    target, drain = FakeTarget(), Drain()
    served = Host(target, drain, pass_timeout_s=0.05)
    with capture_logs() as logs:
        async with asyncio.timeout(5.0), served.running():
            await asyncio.sleep(0.2)
            assert not drain.begun  # a heart that beats is no reason

            target.hangs = True

            await drain.over.wait()
            with pytest.raises(Unavailable, match="failed"):
                served.check()
            target.hangs = False  # or it would not stop

    failed = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["error"]) for entry in failed] == [
        ("the target is lost", "no pass has ended for 0.05 s (pass_timeout_s)")
    ]


async def test_an_engine_that_raises_for_a_heartbeat_ends_the_service() -> None:
    class Dead(FakeTarget):
        async def heartbeat(self) -> None:
            raise RuntimeError("the engine is dead")

    drain = Drain()
    async with asyncio.timeout(5.0), Host(Dead(), drain).running():
        await drain.over.wait()


async def test_a_target_that_does_not_load_ends_the_service() -> None:
    drain = Drain()
    with capture_logs() as logs:
        async with (
            asyncio.timeout(5.0),
            Host(FakeTarget(starts=False), drain, load_timeout_s=0.05).running(),
        ):
            await drain.over.wait()

    assert logs[0]["event"] == "the target cannot start"
    assert logs[0]["error"] == "it was not loaded within 0.05 s"


@pytest.mark.system
async def test_the_embedded_targets_heart_beats_between_two_passes(tmp_path: Path) -> None:
    metrics = VerifierMetrics(CollectorRegistry())
    target = LlamaTarget(lambda: StoredModel("m", tmp_path), LlamaSettings(), Limits(), metrics)
    ends = threading.Event()
    target._thread.submit(ends.wait)  # a pass

    beat = asyncio.create_task(target.heartbeat())
    done, _ = await asyncio.wait([beat], timeout=0.1)
    ends.set()

    assert not done
    async with asyncio.timeout(GUARD_S):
        await beat
    target._thread.shutdown()


# A target on llama.cpp whose model is not here fetches it when it starts, and not before.


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model of the user's catalogue, which the store does not have."""
    file = tmp_path / "toy.gguf"
    file.write_bytes(gguf_header(Q8_0))
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


def test_a_file_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"there is no model .*/missing\.gguf"):
        target(model=str(tmp_path / "missing.gguf"))


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
