"""What is certain of text that still grows, for the tokenizers of real models."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picospec.edge_agent.draft_model.foreign.retokeniser import Retokeniser
from tests.edge_agent.foreign import TEXTS, Name, model, translation
from tests.edge_agent.words import WordEncoder

pytestmark = pytest.mark.models

NAMES: list[Name] = ["smollm2", "qwen"]


def retokeniser(name: Name) -> Retokeniser:
    return translation(name, "smollm2").target


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, share=st.floats(0, 1))
@example(text="x = f():\n        return", share=0.6)
@example(text="🙂🙂 中文字", share=0.7)
@example(text=" --,the 🙂's", share=0.5)
def test_what_is_stable_is_how_every_continuation_begins(
    name: Name, text: str, share: float
) -> None:
    retokenise, whole = retokeniser(name), text.encode()

    stable = retokenise.stable(whole[: int(len(whole) * share)])

    assert stable == retokenise.tokenise(whole)[: len(stable)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, share=st.floats(0, 1))
@example(text=" --,the", share=0.4)
@example(text="🙂's", share=0.5)
@example(text="\ue000/A00\x81's", share=0.875)
def test_text_is_tokenised_alike_behind_any_of_its_tokens(
    name: Name, text: str, share: float
) -> None:
    retokenise = retokeniser(name)
    tokens = retokenise.tokenise(text.encode())
    first = int(len(tokens) * share)
    rest = retokenise.bytes_of(tokens[first:])
    if retokenise.bytes_of(tokens) != text.encode():
        return

    assert retokenise.tokenise(rest, tokens[:first]) == tokens[first:]


@pytest.mark.parametrize(
    ("name", "text", "stable"),
    [
        ("qwen", " the quick", [b" the"]),
        ("qwen", " the", []),  # `there` may come
        ("qwen", "):", []),  # one token with the newline that may come
        ("smollm2", "):", []),
        ("smollm2", "):\n", [b"):"]),
        ("qwen", "12", [b"1"]),  # no token has two digits
        ("qwen", "f():\n    return x", [b"f", b"():\n", b"   ", b" return"]),
    ],
)
def test_a_token_is_stable_once_nothing_can_merge_with_it(
    name: Name, text: str, stable: list[bytes]
) -> None:
    retokenise = retokeniser(name)

    found = retokenise.stable(text.encode())

    assert [retokenise.vocabulary.pieces[token] for token in found] == stable


@pytest.mark.parametrize("name", NAMES)
def test_a_character_that_is_not_complete_waits(name: Name) -> None:
    retokenise, text = retokeniser(name), "ab, 🙂".encode()

    for missing in (1, 2, 3):
        assert retokenise.bytes_of(retokenise.stable(text[:-missing])) in (b"ab", b"ab,")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=12))
def test_bytes_that_are_no_text_are_spelt_as_far_as_there_are_pieces(
    name: Name, text: bytes
) -> None:
    retokenise = retokeniser(name)
    known = {piece for piece in retokenise.vocabulary.pieces if len(piece) == 1}

    spelt = retokenise.bytes_of(retokenise.tokenise(text))

    if all(bytes([byte]) in known for byte in text):
        assert spelt == text


def test_a_tokenizer_that_begins_with_a_space_is_given_something_before_the_text() -> None:
    plain = model("smollm2")

    def with_space(text: str) -> list[int]:
        return plain.tokenize(f" {text}", False)

    retokenise = Retokeniser(plain.vocabulary, with_space)

    for text in ("word", " word", "two words", ":\n  x"):
        assert retokenise.bytes_of(retokenise.tokenise(text.encode())) == text.encode()


def test_what_text_can_begin_with_is_a_longer_token_or_what_the_tokenizer_takes() -> None:
    retokenise = retokeniser("smollm2")

    pieces = {retokenise.vocabulary.pieces[token] for token in retokenise.compatible(b" It")}
    newlines = {
        retokenise.vocabulary.pieces[token] for token in retokenise.compatible(b"\n\n\n")
    }

    assert {b" It", b" Its", b" Italy"} <= pieces
    assert b" I" not in pieces  # it is no beginning of the word
    assert {b"\n\n\n", b"\n\n"} <= newlines  # the second, where no space follows


def test_special_tokens_have_no_part_in_it() -> None:
    words = WordEncoder([b"a", b"b", b"ab", b"<end>"], special={3})
    retokenise = Retokeniser(words.vocabulary, lambda text: words.tokenize(text, False))

    assert retokenise.longest_prefix(b"<end>") is None
    assert list(retokenise.compatible(b"a")) == [0, 2]
