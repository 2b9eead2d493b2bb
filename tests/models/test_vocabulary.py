"""The meaning of a token id."""

from __future__ import annotations

from dataclasses import replace

from models.vocabulary import Vocabulary

NORMAL, CONTROL, USER_DEFINED = 4, 8, 16
WORDS = Vocabulary(
    pieces=(b"<|im_end|>", b"</s>", b"hello", b"<tool_call>"),
    attributes=(CONTROL, NORMAL | CONTROL, NORMAL, USER_DEFINED),
    ends=frozenset({0, 1}),
    eos=0,
)


def test_a_marker_shows_nothing_unless_asked_for() -> None:
    assert WORDS.piece(0) == b""
    assert WORDS.piece(0, special=True) == b"<|im_end|>"


def test_text_that_llama_cpp_treats_as_a_marker_is_shown_and_stops_nothing() -> None:
    assert WORDS.piece(1) == b"</s>"
    assert not WORDS.is_special(1)
    assert WORDS.stop_tokens == {0}


def test_the_end_of_sequence_stops_whatever_it_looks_like() -> None:
    assert replace(WORDS, eos=1).stop_tokens == {0, 1}


def test_a_user_defined_token_is_text() -> None:
    assert WORDS.piece(3) == b"<tool_call>"


def test_equal_vocabularies_have_equal_fingerprints() -> None:
    assert replace(WORDS).fingerprint == WORDS.fingerprint
    assert len(WORDS.fingerprint) == 32


def test_one_other_piece_attribute_or_order_changes_the_fingerprint() -> None:
    shifted = (b"<|im_end|>", b"</s>h", b"ello", b"<tool_call>")
    others = [
        replace(WORDS, pieces=shifted),
        replace(WORDS, pieces=tuple(reversed(WORDS.pieces))),
        replace(WORDS, attributes=(CONTROL, NORMAL, NORMAL, USER_DEFINED)),
    ]

    assert len({words.fingerprint for words in [WORDS, *others]}) == 4
