"""The meaning of a token id, and how two vocabularies are related."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
