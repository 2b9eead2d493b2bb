"""Verifiers have one identity if their texts are the same, as far as can be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculation.protocol.messages import Limits
from verifier.identity import SAMPLES, identity_of, weights_of

SIZE = 3_000_000


def weights(path: Path, changed: int | None = None) -> Path:
    data = bytearray(i * 31 % 251 for i in range(SIZE))
    if changed is not None:
        data[changed : changed + SIZE // SAMPLES] = bytes(SIZE // SAMPLES)
    path.write_bytes(data)
    return path


def test_the_same_weights_elsewhere_are_the_same(tmp_path: Path) -> None:
    one, other = weights(tmp_path / "a.gguf"), weights(tmp_path / "b.gguf")

    assert weights_of(one) == weights_of(other)


@pytest.mark.parametrize("changed", [0, SIZE // 3, SIZE - SIZE // SAMPLES])
def test_weights_that_differ_in_a_layer_differ(tmp_path: Path, changed: int) -> None:
    one, other = weights(tmp_path / "a.gguf"), weights(tmp_path / "b.gguf", changed)

    assert weights_of(one) != weights_of(other)


def test_a_directory_is_known_by_its_files_of_weights(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors")
    before = weights_of(tmp_path)
    (tmp_path / "README.md").write_text("new")

    assert weights_of(tmp_path) == before
    weights(tmp_path / "model.safetensors", changed=0)
    assert weights_of(tmp_path) != before


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"12345")
    other.write_bytes(b"12346")

    assert weights_of(one) != weights_of(other)


@pytest.mark.parametrize(
    "other", [("w", 2, Limits()), ("w", 1, Limits(max_ahead=64)), ("v", 1)]
)
def test_any_part_shapes_the_identity(other: tuple[object, ...]) -> None:
    assert identity_of("w", 1, Limits()) == identity_of("w", 1, Limits())
    assert identity_of(*other) != identity_of("w", 1, Limits())
