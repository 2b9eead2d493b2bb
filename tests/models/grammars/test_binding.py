"""llguidance is given tokens that have the bytes of a text, whatever the tokenizer adds."""

from __future__ import annotations

import pytest

from picospec.models.errors import InvalidGrammar
from picospec.models.grammars import (
    Tokenize,
    grammar_text,
    make_matcher,
    make_tokenizer,
)
from tests.models.grammars.small import TOKENS, VOCABULARY, greedy


def spaced(text: str) -> list[int]:
    """A tokenizer that puts a space before each text, as SentencePiece's do."""
    return greedy(f" {text}")


def unhelpful(text: str) -> list[int]:
    """A tokenizer that changes the text."""
    return greedy(text.upper())


@pytest.mark.parametrize("tokenize", [greedy, spaced, unhelpful])
@pytest.mark.parametrize("text", ["abab", "true", '{"name": "\u00e9"}'])
def test_forced_tokens_have_the_bytes_of_the_text_and_are_the_tokenizers_where_they_can_be(
    tokenize: Tokenize, text: str
) -> None:
    tokens = make_tokenizer(VOCABULARY, tokenize)

    forced = make_matcher(tokens, grammar_text("choice", [text])).compute_ff_tokens()

    assert forced == greedy(text)


@pytest.mark.parametrize(
    ("grammar", "attribute"),
    [
        ('start: a\na[stop="x"]: /.*/', "stop"),
        ('start: a\n?a [lazy, stop = ""]: /b/', "stop"),
        ("start: a\na[max_tokens=5]: /b*/", "max_tokens"),
        ("start: a\na[temperature=0.5]: /b/", "temperature"),
    ],
)
def test_a_rule_whose_attribute_would_be_ignored_is_an_error(
    grammar: str, attribute: str
) -> None:
    with pytest.raises(InvalidGrammar, match=f"`{attribute}`"):
        grammar_text("grammar", grammar)


def test_the_word_stop_elsewhere_is_not() -> None:
    text = grammar_text("grammar", 'start: "[ stop=" STOP\nSTOP: /[a-z]+/')

    make_matcher(TOKENS, text)


def test_an_error_is_one_line() -> None:
    with pytest.raises(InvalidGrammar) as raised:
        make_matcher(TOKENS, grammar_text("regex", "a\n("))

    assert "\n" not in raised.value.reason
    assert "unclosed group" in raised.value.reason
