"""What a draft model of another vocabulary has of an answer, while the target writes it."""

from __future__ import annotations

import pytest

from picospec.edge_agent.draft_model.foreign.draft_text import REREAD_TOKENS, DraftText
from picospec.edge_agent.draft_model.foreign.retokeniser import Retokeniser
from tests.edge_agent.foreign import Name, translation

pytestmark = pytest.mark.models


def retokeniser(name: Name = "smollm2") -> Retokeniser:
    return translation("qwen", name).draft


def goes_on(_: bytes) -> bool:
    return True


def cut(_: bytes) -> bool:
    return False


@pytest.fixture
def text() -> DraftText:
    """ "One two" in two tokens that the draft model drew."""
    found = DraftText(retokeniser())
    for token, confidence in zip(retokeniser().tokenise(b"One two"), (0.5, 0.25), strict=True):
        found.append(token, confidence)
    return found


def test_what_the_target_confirms_stays_as_the_draft_model_wrote_it(text: DraftText) -> None:
    before = list(text.tokens)

    assert text.follow(b"One", goes_on) == b""
    assert text.follow(b"One two", goes_on) == b""
    assert text.tokens == before


def test_what_the_draft_model_writes_behind_a_token_that_is_complete_is_dropped(
    text: DraftText,
) -> None:
    owed = text.follow(b"One", cut)

    assert text.spelt + owed == b"One"


def test_other_text_is_tokenised_again_from_a_few_tokens_before_it() -> None:
    words = [b"a", b" b", b" c", b" d", b" e", b" f", b" g", b" h"]
    text = DraftText(retokeniser())
    for word in words:
        text.append(retokeniser().tokenise(word)[0], 0.5)
    kept = len(words) - 2 - REREAD_TOKENS

    owed = text.follow(b"a b c d e f x y", goes_on)

    assert text.spelt + owed == b"a b c d e f x y"
    assert text.confidences(0, [len(b"a b"), len(text.spelt)]) == [0.5**kept, 1.0]


@pytest.mark.parametrize(
    ("written", "owed"),
    [
        (b"f(x):\n", b"\n"),  # the indentation that may follow is one token with it
        (b"x =", b" ="),
        (b"    ", b"    "),
    ],
)
def test_the_draft_model_chooses_its_last_tokens_itself(written: bytes, owed: bytes) -> None:
    text = DraftText(retokeniser())

    assert text.follow(written, goes_on) == owed
    assert text.spelt + owed == written


def test_what_it_chose_is_kept_until_the_text_changes() -> None:
    text = DraftText(retokeniser())
    text.follow(b"x\n\n\n", goes_on)
    text.append(retokeniser().tokenise(b"\n\n")[0], 1.0)

    assert text.follow(b"x\n\n\n", goes_on) == b"\n"
    assert text.spelt == b"x\n\n"


def test_a_stretch_is_as_sure_as_the_tokens_that_begin_in_it(text: DraftText) -> None:
    assert text.confidences(0, [3, 7]) == [0.5, 0.25]
    assert text.confidences(0, [7]) == [0.125]
    assert text.confidences(0, [1, 3, 4, 7]) == [0.5, 1.0, 0.25, 1.0]
    assert text.confidences(3, [7]) == [0.25]


def test_text_that_the_draft_model_cannot_spell_is_passed_over() -> None:
    retokenise = retokeniser()
    unknown = next(
        char
        for char in map(chr, range(0x20000, 0x110000, 0x1000))
        if retokenise.bytes_of(retokenise.tokenise(char.encode())) != char.encode()
    )
    text, written = DraftText(retokenise), f"one {unknown} two".encode()

    assert text.follow(written, goes_on) == b""
    assert text.spelt == written
    assert text.follow(written + b" three", goes_on) != b""
