"""A GGUF file's metadata is copied whole, and no bytes lead the walk astray."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_models.errors import CannotOpen
from local_models.gguf import check_metadata, is_exact, metadata_of, tensor_bytes
from local_models.llama_cpp.model import Model
from local_models.store import open_store
from local_models.vocabulary import Vocabulary, relate
from tests.local_models.conftest import silent
from tests.local_models.gguf_files import F16, F32, Q4_0, Q6_K, Q8_0, gguf_header

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


# Exact weights are told by a file's tensors, whatever its name says.


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
    file.write_bytes(gguf_header(*matrices))

    assert is_exact(file) is exact


@pytest.mark.parametrize(
    "content", [b"", b"not a gguf", gguf_header(Q8_0)[:-9], b"GGUF" + b"\xff" * 99]
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


@pytest.mark.models
def test_the_sizes_of_tensors_are_those_of_their_blocks(smollm: Callable[[str], Model]) -> None:
    path = smollm("q8_0").path

    sizes = tensor_bytes(path)

    assert sizes["token_embd.weight"] == 49152 * 576 * 34 // 32
    assert sizes["blk.29.attn_norm.weight"] == 576 * 4
    assert sum(sizes.values()) + len(metadata_of(path)) < path.stat().st_size
    assert sum(sizes.values()) > 0.97 * path.stat().st_size


# The meaning of a token id, and how two vocabularies are related.

WORDS = Vocabulary(
    pieces=(b"<|im_end|>", b"</s>", b"hello", b"<tool_call>"),
    special=frozenset({0}),
    stop_tokens=frozenset({0}),
)


def test_a_marker_shows_nothing_unless_asked_for() -> None:
    assert WORDS.piece(0) == b""
    assert WORDS.piece(0, special=True) == b"<|im_end|>"
    assert WORDS.markers == {"<|im_end|>": 0}


def test_an_id_that_is_no_token_shows_nothing() -> None:
    assert WORDS.piece(4) == b""


PADDED = replace(WORDS, padding=1)
LONGER = replace(WORDS, pieces=(*WORDS.pieces, b"<think>"))
SMALLER = Vocabulary((b"a", b"b"), frozenset(), frozenset())


@pytest.mark.parametrize(
    ("target", "draft", "relation"),
    [
        (WORDS, replace(WORDS), "identical"),
        (PADDED, WORDS, "padded"),
        (WORDS, PADDED, "padded"),
        (LONGER, PADDED, "padded"),  # the draft model can read the token more
        (WORDS, LONGER, "padded"),
        (LONGER, WORDS, "different"),
        (WORDS, SMALLER, "different"),
    ],
)
def test_padding_changes_no_meaning_and_neither_do_tokens_that_a_draft_model_can_read(
    target: Vocabulary, draft: Vocabulary, relation: str
) -> None:
    assert relate(target, draft) == relation


@given(st.integers(0, 3), st.binary(max_size=3))
def test_one_other_piece_makes_vocabularies_different(token: int, piece: bytes) -> None:
    pieces = (*WORDS.pieces[:token], piece, *WORDS.pieces[token + 1 :])

    expected = "identical" if pieces == WORDS.pieces else "different"
    assert relate(WORDS, replace(WORDS, pieces=pieces)) == expected
