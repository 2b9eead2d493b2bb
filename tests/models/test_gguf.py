"""A GGUF file's metadata is copied whole, and no bytes lead the walk astray."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.models.gguf import check_metadata, metadata_of
from picospec.models.llama_cpp.model import Model

HEADER = struct.Struct("<4sIQQ")


@pytest.fixture(scope="module")
def metadata(smollm: Callable[[str], Model]) -> bytes:
    return metadata_of(smollm("q8_0").path)


def test_the_copy_has_the_vocabulary_of_the_file(
    smollm: Callable[[str], Model], metadata: bytes, tmp_path: Path
) -> None:
    (tmp_path / "copy.gguf").write_bytes(metadata)

    copy, model = Model(tmp_path / "copy.gguf", vocabulary_only=True), smollm("q8_0")
    assert (copy.vocabulary, copy.metadata()) == (model.vocabulary, model.metadata())
    assert len(metadata) < 3 << 20


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_does_more_than_raise(metadata: bytes, data: st.DataObject) -> None:
    start = bytearray(metadata[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(start) - 8))
        start[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))

    with pytest.raises(ValueError, match=r"cut|GGUF|array|kind|nothing after"):
        check_metadata(bytes(start))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "no GGUF", id="empty"),
        pytest.param(HEADER.pack(b"GGUF", 3, 0, 1 << 60), "be read", id="too-many-pairs"),
        pytest.param(HEADER.pack(b"GGUF", 9, 0, 0), "be read", id="unknown-version"),
        pytest.param(HEADER.pack(b"GGUF", 3, 1, 0), "no tensors", id="tensors"),
        pytest.param(HEADER.pack(b"GGUF", 3, 0, 0) + b"x", "nothing after", id="more"),
        pytest.param(
            HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<QII", 0, 9, 8) + b"\xff" * 8,
            "longer than the file",
            id="endless-array",
        ),
    ],
)
def test_what_is_no_metadata_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_metadata(data)
