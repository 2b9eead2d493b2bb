"""The meaning of a token id, and how two vocabularies are related."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from picospec.models.vocabulary import Vocabulary, relate

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


def test_a_vocabulary_is_identical_to_itself() -> None:
    assert relate(WORDS, replace(WORDS)) == "identical"


def test_padding_changes_no_meaning() -> None:
    assert relate(replace(WORDS, padding=3), WORDS) == "padded"
    assert relate(WORDS, replace(WORDS, padding=3)) == "padded"


def test_more_tokens_are_padding_to_a_draft_model_that_can_read_them() -> None:
    longer = replace(WORDS, pieces=(*WORDS.pieces, b"<think>"))

    assert relate(longer, replace(WORDS, padding=1)) == "padded"
    assert relate(WORDS, longer) == "padded"
    assert relate(longer, WORDS) == "different"


@given(st.integers(0, 3), st.binary(max_size=3))
def test_one_other_piece_makes_vocabularies_different(token: int, piece: bytes) -> None:
    pieces = (*WORDS.pieces[:token], piece, *WORDS.pieces[token + 1 :])

    expected = "identical" if pieces == WORDS.pieces else "different"
    assert relate(WORDS, replace(WORDS, pieces=pieces)) == expected


def test_a_smaller_vocabulary_of_another_family_is_different() -> None:
    assert relate(WORDS, Vocabulary((b"a", b"b"), frozenset(), frozenset())) == "different"
