"""Verifiers have one identity if their texts are the same, as far as can be known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from picospec.models.blobs import FileHashes
from picospec.speculation.messages import Limits
from picospec.verifier import target as identity
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.target import identity_of
from picospec.verifier.vllm_target.serving.target import VllmTarget

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
