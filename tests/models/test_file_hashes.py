"""A hash is that of the whole file as it is, and is computed once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from picospec.models import blobs
from picospec.models.blobs import FileHashes
from picospec.models.errors import WrongHash


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to be hashed."""
    files: list[Path] = []
    sha256_of = blobs.sha256_of
    monkeypatch.setattr(
        blobs, "sha256_of", lambda path: (files.append(path), sha256_of(path))[1]
    )
    return files


def test_a_file_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, read: list[Path]
) -> None:
    file, kept = tmp_path / "m.gguf", tmp_path / "new" / "hashes.json"
    file.write_bytes(b"one")
    for _ in range(2):  # a second process finds what the first one kept
        assert FileHashes(kept).of(file) == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 1

    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=times)
    other.replace(file)

    assert FileHashes(kept).of(file) == hashlib.sha256(b"two").hexdigest()
    assert os.listdir(kept.parent) == ["hashes.json"]


@pytest.mark.parametrize("corrupt", [b"", b"{", b"[]", b'{"/m": [[1], 2]}', b"\xff"])
def test_what_is_kept_wrongly_is_ignored(
    tmp_path: Path, corrupt: bytes, read: list[Path]
) -> None:
    file, kept = tmp_path / "m.gguf", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    kept.write_bytes(corrupt)

    assert [FileHashes(kept).of(file) for _ in range(2)] == [
        hashlib.sha256(b"one").hexdigest()
    ] * 2
    assert len(read) == 1


def test_where_nothing_can_be_kept_the_file_is_read_each_time(
    tmp_path: Path, read: list[Path]
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    for _ in range(2):
        assert FileHashes(file / "no-folder").of(file)

    assert len(read) == 2


def test_a_blob_that_a_disk_has_changed_is_not_served(tmp_path: Path) -> None:
    blob = tmp_path / hashlib.sha256(b"one").hexdigest()
    blob.write_bytes(b"one")
    link = tmp_path / "m.gguf"
    link.symlink_to(blob)
    hashes = FileHashes(tmp_path / "hashes.json")

    assert hashes.of(link) == blob.name
    blob.write_bytes(b"two")
    with pytest.raises(WrongHash, match="has changed"):
        hashes.of(link)
