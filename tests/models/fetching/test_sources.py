"""The folder is a source that fails quickly."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.catalogue import ModelFile
from picospec.models.errors import SourceFailed
from picospec.models.fetching.sources import Folder


def silent(what: str, done: int, total: int) -> None:
    pass


def test_a_folder_gives_a_copy_of_its_file(
    model: ModelFile, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "toy.gguf").write_bytes(content)

    Folder(tmp_path).fetch(model, tmp_path / "partial", silent)

    assert (tmp_path / "partial").read_bytes() == content
    assert (tmp_path / "toy.gguf").exists()


def test_a_folder_without_the_file_or_no_folder_has_failed(
    model: ModelFile, tmp_path: Path
) -> None:
    for folder in (Folder(tmp_path), Folder(None)):
        with pytest.raises(SourceFailed):
            folder.fetch(model, tmp_path / "partial", silent)
