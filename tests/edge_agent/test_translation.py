"""From the target's tokens to those of a draft model that has others."""

from __future__ import annotations

import pytest

from picospec.edge_agent.draft.foreign import take
from picospec.edge_agent.draft.llama import LlamaDrafter
from picospec.edge_agent.draft.retokeniser import Translation, special_tokens
from picospec.models.tokenizer import Tokenizer
from tests.edge_agent.words import WordEncoder

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


def test_text_is_tokenised_anew_and_markers_become_the_draft_models(pair: Translation) -> None:
    assert pair.prompt([TOOL, AB, AB, END]) == [BOS_, TOOL_, A_, B_, A_, B_, STOP_]


def test_a_marker_that_the_draft_model_lacks_is_spelt(pair: Translation) -> None:
    own = pair.prompt([AB, NOTE, AB])

    assert pair.draft.bytes_of(own) == b"<bos>ab<note>ab"
    assert set(own) & {STOP_, TOOL_} == set()


def test_one_that_only_begins_the_prompt_is_left_out(pair: Translation) -> None:
    assert pair.prompt([BEGIN, AB]) == [BOS_, A_, B_]
    assert pair.prompt([]) == [BOS_]


def test_a_prompt_that_it_leaves_empty_gets_no_slot(drafter: LlamaDrafter) -> None:
    DRAFT.raw_beginning = ()
    pair = Translation(Tokenizer(TARGET, None), DRAFT)

    assert pair.prompt([BEGIN]) == []
    assert take(drafter, pair, [BEGIN]) is None


def test_what_begins_every_prompt_is_there_once(pair: Translation) -> None:
    shared = WordEncoder([b"<end>", b"<bos>", *LETTERS], special=range(2))

    assert Translation(Tokenizer(shared, None), DRAFT).prompt([1, 5]) == [BOS_, A_]


def test_the_ends_of_a_turn_are_related_even_where_they_are_spelt_otherwise() -> None:
    assert special_tokens(DRAFT.vocabulary, TARGET.vocabulary) == {STOP_: END, TOOL_: TOOL}
    assert special_tokens(TARGET.vocabulary, DRAFT.vocabulary) == {END: STOP_, TOOL: TOOL_}
