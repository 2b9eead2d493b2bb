"""Verifiers have one identity if their texts are the same, as far as can be known; a model that
is not here is fetched when its target starts, and a target that is lost ends the service.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.drain import Drain
from gateway.errors import Unavailable
from local_models.errors import CannotOpen, UnknownModel
from local_models.file_hashes import FileHashes
from local_models.store import StoredModel
from speculation.model_facts import Limits
from tests.guards import GUARD_S
from tests.local_models.gguf_files import Q8_0, gguf_header
from tests.verifier.fake_target import FakeTarget
from verifier.app import make_target
from verifier.host import Host
from verifier.identity import identity_of, weights_of
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import VerifierMetrics
from verifier.settings import LlamaSettings, load
from verifier.vllm_target.serving.target import VllmTarget


def test_a_file_is_known_by_its_weights_wherever_it_is(tmp_path: Path) -> None:
    contents = {"a.gguf": b"weights", "b.gguf": b"weights", "c.gguf": b"weighty"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    one, same, other = (weights_of(tmp_path / name, FileHashes()) for name in contents)

    assert one == same != other


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_directory_is_known_by_what_shapes_a_text(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("one")
    before = weights_of(tmp_path, FileHashes())
    (tmp_path / "README.md").write_text("new")

    assert weights_of(tmp_path, FileHashes()) == before
    (tmp_path / file).write_text("two")
    assert weights_of(tmp_path, FileHashes()) != before


@pytest.mark.parametrize(
    "other", [("w", 2, Limits()), ("w", 1, Limits(max_ahead=64)), ("v", 1)]
)
def test_any_part_shapes_the_identity(other: tuple[object, ...]) -> None:
    assert identity_of("w", 1, Limits()) == identity_of("w", 1, Limits())
    assert identity_of(*other) != identity_of("w", 1, Limits())


def shapes(download_dir: str | None = None, revision: str | None = None) -> object:
    """What tells the weights of a repository on vLLM, and what the log says of it."""
    model = SimpleNamespace(model="o/r", revision=revision, download_dir=download_dir)
    engine = SimpleNamespace(model=model, download_dir=download_dir)
    metrics = VerifierMetrics(CollectorRegistry())
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


def dies(target: FakeTarget) -> None:
    target.alive = False


def hangs(target: FakeTarget) -> None:
    target.hangs = True


def raises(target: FakeTarget) -> None:
    async def heartbeat() -> None:
        raise RuntimeError("the engine is dead")

    target.heartbeat = heartbeat  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("befall", "error"),
    [
        (dies, "its engine has failed"),
        (hangs, "no pass has ended for 60 s (pass_timeout_s)"),
        (raises, "the engine is dead"),
    ],
)
async def test_a_target_that_is_lost_ends_the_service(
    befall: Callable[[FakeTarget], None], error: str
) -> None:
    target, drain = FakeTarget(), Drain()
    served = Host(target, drain, pass_timeout_s=60.0)
    with capture_logs() as logs:
        async with served.running():
            await asyncio.sleep(600.0)
            assert served.ready() is target
            served.check()
            assert not drain.begun  # a heart that beats is no reason

            befall(target)

            await asyncio.wait_for(drain.over.wait(), 2 * 60.0)
            for ask in (served.ready, served.check):
                with pytest.raises(Unavailable, match="failed"):
                    ask()
            target.hangs = False  # or it would not stop

    assert target.stopped
    assert served.state == "failed"
    failed = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["error"]) for entry in failed] == [
        ("the target is lost", error)
    ]


async def test_a_target_that_does_not_load_ends_the_service() -> None:
    drain = Drain()
    with capture_logs() as logs:
        async with Host(FakeTarget(starts=False), drain, load_timeout_s=60.0).running():
            await drain.over.wait()

    assert logs[0]["event"] == "the target cannot start"
    assert logs[0]["error"] == "it was not loaded within 60 s"


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


def test_a_missing_model_is_fetched_at_the_start_and_the_log_shows_how_far_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, renamed = target(model="toy"), target(model="toy", served_name="coder")
    assert not (tmp_path / "cache/models/blobs").exists()

    found = made._find()

    assert found.name == "toy"
    assert found.path.read_bytes() == model.read_bytes()
    assert "toy: copying 0 %" in capsys.readouterr().err
    made._find()
    assert capsys.readouterr().err == ""
    assert renamed._find().name == "coder"


def test_what_nobody_has_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"there is no model .*/missing\.gguf"):
        target(model=str(tmp_path / "missing.gguf"))
    with pytest.raises(UnknownModel, match="nonsense"):
        target(model="nonsense")
