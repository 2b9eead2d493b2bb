"""Text that still grows, for real tokenizers: what is certain of it, and what a draft model of
another vocabulary has of it while the target writes it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.draft.draft_text import REREAD_TOKENS, DraftText
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.retokeniser import Retokeniser
from edge_agent.draft.token_mapping import Translation, special_tokens
from local_models.tokenizer import Tokenizer
from tests.edge_agent.cross_vocabulary import TEXTS, Name, WordEncoder, model, translation

NAMES: list[Name] = ["smollm2", "qwen"]


def retokeniser(name: Name) -> Retokeniser:
    return translation(name, "smollm2").target


@pytest.mark.models
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


@pytest.mark.models
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


@pytest.mark.models
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


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=12))
def test_bytes_that_are_no_text_are_spelt_as_far_as_there_are_pieces(
    name: Name, text: bytes
) -> None:
    retokenise = retokeniser(name)
    known = {piece for piece in retokenise.vocabulary.pieces if len(piece) == 1}

    decoded = retokenise.bytes_of(retokenise.tokenise(text))

    if all(bytes([byte]) in known for byte in text):
        assert decoded == text


@pytest.mark.models
def test_a_tokenizer_that_begins_with_a_space_is_given_something_before_the_text() -> None:
    plain = model("smollm2")

    def with_space(text: str) -> list[int]:
        return plain.tokenize(f" {text}", False)

    retokenise = Retokeniser(plain.vocabulary, with_space)

    for text in ("word", " word", "two words", ":\n  x"):
        assert retokenise.bytes_of(retokenise.tokenise(text.encode())) == text.encode()


@pytest.mark.models
def test_what_text_can_begin_with_is_a_longer_token_or_what_the_tokenizer_takes() -> None:
    retokenise = retokeniser("smollm2")

    def beginnings(text: bytes) -> set[bytes]:
        return {retokenise.vocabulary.pieces[token] for token in retokenise.compatible(text)}

    pieces, newlines = beginnings(b" It"), beginnings(b"\n\n\n")

    assert {b" It", b" Its", b" Italy"} <= pieces
    assert b" I" not in pieces  # it is no beginning of the word
    assert {b"\n\n\n", b"\n\n"} <= newlines  # the second, where no space follows


@pytest.mark.models
def test_special_tokens_have_no_part_in_it() -> None:
    words = WordEncoder([b"a", b"b", b"ab", b"<end>"], special={3})
    retokenise = Retokeniser(words.vocabulary, lambda text: words.tokenize(text, False))

    assert retokenise.longest_prefix(b"<end>") is None
    assert list(retokenise.compatible(b"a")) == [0, 2]


# --- what a draft model has of a text


def draft_models() -> Retokeniser:
    return translation("qwen", "smollm2").draft


def can_continue(_: bytes) -> bool:
    return True


def cut(_: bytes) -> bool:
    return False


@pytest.fixture
def text() -> DraftText:
    """ "One two" in two tokens that the draft model drew."""
    found = DraftText(draft_models())
    for token, confidence in zip(draft_models().tokenise(b"One two"), (0.5, 0.25), strict=True):
        found.append(token, confidence)
    return found


@pytest.mark.models
def test_what_the_target_confirms_stays_as_the_draft_model_wrote_it(text: DraftText) -> None:
    before = list(text.tokens)

    assert text.follow(b"One", can_continue) == b""
    assert text.follow(b"One two", can_continue) == b""
    assert text.tokens == before


@pytest.mark.models
def test_what_the_draft_model_writes_behind_a_token_that_is_complete_is_dropped(
    text: DraftText,
) -> None:
    required = text.follow(b"One", cut)

    assert text.decoded + required == b"One"


@pytest.mark.models
def test_other_text_is_tokenised_again_from_a_few_tokens_before_it() -> None:
    words = [b"a", b" b", b" c", b" d", b" e", b" f", b" g", b" h"]
    text = DraftText(draft_models())
    for word in words:
        text.append(draft_models().tokenise(word)[0], 0.5)
    kept = len(words) - 2 - REREAD_TOKENS

    required = text.follow(b"a b c d e f x y", can_continue)

    assert text.decoded + required == b"a b c d e f x y"
    assert text.confidences(0, [len(b"a b"), len(text.decoded)]) == [0.5**kept, 1.0]


@pytest.mark.models
@pytest.mark.parametrize(
    ("written", "rest"),
    [
        (b"f(x):\n", b"\n"),  # the indentation that may follow is one token with it
        (b"x =", b" ="),
        (b"    ", b"    "),
    ],
)
def test_the_draft_model_chooses_its_last_tokens_itself(written: bytes, rest: bytes) -> None:
    text = DraftText(draft_models())

    assert text.follow(written, can_continue) == rest
    assert text.decoded + rest == written


@pytest.mark.models
def test_what_it_chose_is_kept_until_the_text_changes() -> None:
    text = DraftText(draft_models())
    text.follow(b"x\n\n\n", can_continue)
    text.append(draft_models().tokenise(b"\n\n")[0], 1.0)

    assert text.follow(b"x\n\n\n", can_continue) == b"\n"
    assert text.decoded == b"x\n\n"


@pytest.mark.models
def test_a_stretch_is_as_sure_as_the_tokens_that_begin_in_it(text: DraftText) -> None:
    assert text.confidences(0, [3, 7]) == [0.5, 0.25]
    assert text.confidences(0, [7]) == [0.125]
    assert text.confidences(0, [1, 3, 4, 7]) == [0.5, 1.0, 0.25, 1.0]
    assert text.confidences(3, [7]) == [0.25]


@pytest.mark.models
def test_text_that_the_draft_model_cannot_spell_is_passed_over() -> None:
    retokenise = draft_models()
    unknown = next(
        char
        for char in map(chr, range(0x20000, 0x110000, 0x1000))
        if retokenise.bytes_of(retokenise.tokenise(char.encode())) != char.encode()
    )
    text, written = DraftText(retokenise), f"one {unknown} two".encode()

    assert text.follow(written, can_continue) == b""
    assert text.decoded == written
    assert text.follow(written + b" three", can_continue) != b""


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["antidisestablishment", "pseudonymous words", "unhappiness"])
def test_text_behind_broken_bytes_is_tokenised_as_anywhere_else(name: Name, text: str) -> None:
    retokenise, broken, whole = retokeniser(name), b"\xff", text.encode()

    found = retokenise.tokenise(broken + whole)

    assert found == [*retokenise.tokenise(broken), *retokenise.tokenise(whole)]


# From the target's tokens to those of a draft model that has others.

LETTERS = [b"<", b"s", b">", b"a", b"b", b"/", b"n", b"o", b"t", b"e", b"d"]
TARGET = WordEncoder(
    [b"<end>", b"<s>", b"<note>", b"<tool>", b"ab", *LETTERS], special=range(4)
)
DRAFT = WordEncoder([b"<stop>", b"<bos>", b"<tool>", b"a", b"b", *LETTERS], special=range(3))
END, BEGIN, NOTE, TOOL, AB = range(5)
STOP_, BOS_, TOOL_, A_, B_ = range(5)
"""Tokens of the target, and those of the draft model."""


@pytest.fixture
def pair() -> Translation:
    DRAFT.raw_beginning = (BOS_,)
    return Translation(Tokenizer(TARGET, None), DRAFT)


@pytest.mark.parametrize(
    ("prompt", "own"),
    [
        ([TOOL, AB, AB, END], [BOS_, TOOL_, A_, B_, A_, B_, STOP_]),
        ([BEGIN, AB], [BOS_, A_, B_]),
        ([], [BOS_]),
    ],
    ids=["markers become the draft model's", "one that only begins it is left out", "empty"],
)
def test_the_text_of_a_prompt_is_tokenised_anew(
    pair: Translation, prompt: list[int], own: list[int]
) -> None:
    assert pair.prompt(prompt) == own


def test_a_marker_that_the_draft_model_lacks_is_spelt(pair: Translation) -> None:
    own = pair.prompt([AB, NOTE, AB])

    assert pair.draft.bytes_of(own) == b"<bos>ab<note>ab"
    assert set(own) & {STOP_, TOOL_} == set()


def test_a_prompt_that_it_leaves_empty_gets_no_slot(drafter: LlamaDrafter) -> None:
    DRAFT.raw_beginning = ()
    pair = Translation(Tokenizer(TARGET, None), DRAFT)

    assert pair.prompt([BEGIN]) == []
    assert drafter.take(pair.prompt([BEGIN])) is None


def test_what_begins_every_prompt_is_there_once(pair: Translation) -> None:
    shared = WordEncoder([b"<end>", b"<bos>", *LETTERS], special=range(2))

    assert Translation(Tokenizer(shared, None), DRAFT).prompt([1, 5]) == [BOS_, A_]


def test_the_ends_of_a_turn_are_related_even_where_they_are_spelt_otherwise() -> None:
    assert special_tokens(DRAFT.vocabulary, TARGET.vocabulary) == {STOP_: END, TOOL_: TOOL}
    assert special_tokens(TARGET.vocabulary, DRAFT.vocabulary) == {END: STOP_, TOOL: TOOL_}
