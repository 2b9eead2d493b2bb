"""Exact weights are told by a file's tensors, whatever its name says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from picospec.models.errors import CannotOpen
from picospec.models.gguf import is_exact
from picospec.models.store import open_store
from tests.models.sources import silent

F32, F16, Q4_0, Q8_0, Q6_K = 0, 1, 2, 8, 14


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(*matrices: int) -> bytes:
    """A GGUF header: metadata of each kind, a vector in F32, and matrices of these types."""
    metadata = (
        string("a") + struct.pack("<II", 4, 7),
        string("b") + struct.pack("<I", 8) + string("text"),
        string("c") + struct.pack("<IIQ", 9, 8, 2) + string("x") + string("yy"),
        string("d") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    )
    tensors = [string("norm") + struct.pack("<IQIQ", 1, 64, F32, 0)]
    tensors += [string("w") + struct.pack("<IQQIQ", 2, 64, 64, kind, 0) for kind in matrices]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    return b"".join((head, *metadata, *tensors))


@pytest.mark.parametrize(
    ("matrices", "exact"),
    [
        ((Q8_0, Q8_0), True),
        ((Q4_0, Q8_0, F32), True),
        ((Q4_0, Q6_K), False),
        ((F16,), False),
        ((F32,), False),
        ((), False),
    ],
)
def test_weights_are_exact_if_every_matrix_is(
    tmp_path: Path, matrices: tuple[int, ...], exact: bool
) -> None:
    file = tmp_path / "Q8_0.gguf"
    file.write_bytes(gguf(*matrices))

    assert is_exact(file) is exact


@pytest.mark.parametrize(
    "content", [b"", b"not a gguf", gguf(Q8_0)[:-9], b"GGUF" + b"\xff" * 99]
)
def test_a_file_of_another_form_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)

    with pytest.raises(CannotOpen, match=r"a\.gguf"):
        is_exact(file)


@pytest.mark.models
def test_what_the_catalogue_makes_is_exact_and_a_target_is_made_so(tmp_path: Path) -> None:
    shared = open_store({})
    made = [shared.find(f"smollm2-135m-{kind}", "draft").path for kind in ("q4_0", "q8_0")]
    given = shared.find("smollm2-135m", "draft").path
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})

    (target,) = store.pull(str(given), silent, "target")

    assert [is_exact(path) for path in (*made, given, target)] == [True, True, False, True]
    assert store.find(str(given), "target").path == target
    assert store.find(str(given), "target").name == given.stem
    assert store.pull(str(given), silent, "target") == [target]
    assert store.pull(str(made[1]), silent, "target") == [made[1]]
    store.remove(str(given))
    assert store.find(str(given), "target").path == given
    assert given.exists()
