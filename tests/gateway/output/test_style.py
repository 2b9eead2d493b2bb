"""What a chat template and a vocabulary tell of how a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from picospec.gateway.output.detokenise import Detokeniser, Piece
from picospec.gateway.output.formats.base import AllowedOutput
from picospec.gateway.output.formats.json_calls import Hermes, Mistral
from picospec.gateway.output.style import (
    FORMATS,
    FormatName,
    OutputParser,
    Style,
    Styles,
    choose,
)
from picospec.gateway.ports import Delta
from tests.gateway.output.reading import TOOLS, Read, Tools
from tests.gateway.scripted import END, ByteTokenizer

BOS = END + 1


@dataclass
class MarkedTokenizer(ByteTokenizer):
    """Has special tokens, which are hidden, and a BOS before every prompt."""

    markers: Sequence[str] = ()
    encoded: list[str] = field(default_factory=list)

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        self.encoded.append(text)
        if text in self.markers:
            return [BOS, BOS + 1 + self.markers.index(text)]
        return [BOS, *text.encode()]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that a model writes."""
        for at, marker in enumerate(self.markers):
            if text.startswith(marker):
                return [BOS + 1 + at, *self.tokens(text.removeprefix(marker))]
        return [text.encode()[0], *self.tokens(text[1:])] if text else []


def detokeniser(piece: Piece) -> Detokeniser:
    return Detokeniser(piece, stop_tokens=frozenset({END}), stops=())


def style(template: str, *markers: str) -> Style:
    return Styles().find(MarkedTokenizer(template=template, markers=markers))


def read(style: Style, text: str, prompt: str = "", **wanted: bool) -> Read:
    """Return the message for a text, whose markers are special tokens."""
    tokenizer = style.tokenizer
    assert isinstance(tokenizer, MarkedTokenizer)
    reader = style.reader(detokeniser, tokenizer.tokens(prompt), TOOLS, **wanted)
    message = Read()
    for token in tokenizer.tokens(text):
        delta = reader.read(Delta((token,)))
        assert delta.parsed is not None
        message.add(delta.text, delta.parsed)
    return message


@pytest.mark.parametrize(
    ("template", "tools", "splits", "reader"),
    [
        ("{{ messages }}", {}, True, Detokeniser),
        ("{{ messages }}", TOOLS, True, OutputParser),
        ("<think>", {}, True, OutputParser),
        ("<think>", {}, False, Detokeniser),
    ],
)
def test_an_answer_is_parsed_for_calls_and_for_reasoning_that_the_request_wants(
    template: str, tools: Tools, splits: bool, reader: type
) -> None:
    found = style(template).reader(detokeniser, (), tools, splits_reasoning=splits)

    assert isinstance(found, reader)


def test_markers_that_are_special_tokens_are_seen_by_the_parser() -> None:
    mistral = style("[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]")

    message = read(mistral, '[TOOL_CALLS]now[ARGS]{"a": 1}')

    assert message.decoded == [("now", {"a": 1})]
    assert len(message.calls[0].id) == 9
    assert read(mistral, "so [TOOL_CALLS]").content == "so"


def test_a_special_token_that_no_parser_needs_stays_hidden() -> None:
    hermes = style("<tool_call>", "<|other|>", "[TOOL_CALLS]")

    assert read(hermes, "a<|other|>b[TOOL_CALLS]c").content == "abc"


def test_reasoning_that_the_prompt_opens_is_found_by_its_special_token() -> None:
    thinking = style("<think>", "<think>", "</think>")

    assert read(thinking, "why</think>\n\nHi", "ai:<think>\n") == Read("Hi", "why")
    assert read(thinking, "Hi", "ai:<think>\n\n</think>\n\n") == Read("Hi")


def test_the_style_of_a_tokenizer_is_found_once() -> None:
    styles, tokenizer = Styles(), MarkedTokenizer(template="<think><tool_call>")

    found = styles.find(tokenizer)

    assert styles.known(tokenizer) is found
    assert styles.known(MarkedTokenizer()) is None
    markers = ["</think>", "</tool_call>", "<think>", "<tool_call>"]
    assert sorted(set(tokenizer.encoded)) == [*markers, "<|>"]  # the last by infill
    assert found.capabilities == ("completion", "tools", "thinking", "insert")


def test_the_setting_replaces_what_the_template_tells() -> None:
    tokenizer = ByteTokenizer(template="<tool_call>")

    assert isinstance(Styles().find(tokenizer).format, Hermes)
    assert isinstance(Styles("mistral").find(tokenizer).format, Mistral)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("within <tool_call></tool_call> XML tags", "hermes"),
        ("<tool_call>\n<function=example_function_name>\n<parameter=x>", "qwen_coder"),
        ("{{ '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' }}", "mistral"),
        ('{"name": function name, "parameters": dictionary of argument name}', "llama"),
        ('{{ "<|python_tag|>" }}', "llama"),
        ("format: [func_name1(params_name1=params_value1), func_name2()]", "pythonic"),
        ("{% for message in messages %}", "hermes"),
        ("", "hermes"),
    ],
)
def test_the_template_tells_the_format(template: str, name: FormatName) -> None:
    assert choose(template) == name
    assert name in FORMATS


def test_a_constraint_stays_as_it_is_where_all_of_the_answer_is_content() -> None:
    json = {"json": {"type": "object"}}
    wanted = AllowedOutput({}, required=False, parallel=True, content=json)

    assert style("").constraint((), wanted) is json
    assert style("<think>").constraint((), wanted, splits_reasoning=False) is json
    assert list(style("<think>").constraint((), wanted) or ()) == ["grammar"]
