"""Calls between <tool_call> tags, and what models write in their place."""

from __future__ import annotations

import pytest

from picospec.gateway.output.formats.hermes import Hermes
from picospec.gateway.output.incoming import Incoming, Steps
from picospec.gateway.output.message import Message
from tests.gateway.output.reading import TOOLS, Read, read, run

FENCED = '```json\n{\n  "name": "weather",\n  "arguments": {\n    "city": "Oslo"\n  }\n}\n```'
"""What Qwen2.5-Coder-1.5B writes."""


def hermes(text: str) -> Read:
    return read(Hermes(), list(text))


def test_arguments_come_in_pieces_as_the_model_wrote_them() -> None:
    pieces = ['<tool_call>{"name": "x", "arguments": {', '"a" :  "é', "\\", '"}"', ", 1", "}}"]

    def parse(text: Incoming, out: Message) -> Steps[None]:
        return Hermes().read(text, out, TOOLS)

    moments = run(parse, pieces)

    assert [moment.calls[0].arguments for moment in moments[:6]] == [
        "{",
        '{"a" :  "é',
        '{"a" :  "é',
        '{"a" :  "é\\"}"',
        '{"a" :  "é\\"}", 1',
        '{"a" :  "é\\"}", 1}',
    ]


def test_the_end_tag_inside_a_string_ends_nothing() -> None:
    message = hermes('<tool_call>{"name": "x", "arguments": {"a": "</tool_call>"}}</tool_call>')

    assert message.decoded == [("x", {"a": "</tool_call>"})]
    assert message.content == ""


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "x", "arguments": {"a": 1}}}</tool_call>',
        '<tool_call>{"name": "x", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "x", "arguments": {"a": 1}}',
        '<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>',
        '<tool_call>{"id": [{}], "name": "x", "parameters": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>',
        '<tool_call>{"name": "x", "arguments": {"a": 1}, "b": }</tool_call>',
    ],
)
def test_what_models_get_wrong_is_still_a_call(text: str) -> None:
    assert [(call.name, call.arguments) for call in hermes(text).calls] == [("x", '{"a": 1}')]


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": {}'])
def test_a_call_without_arguments_has_an_empty_object(arguments: str) -> None:
    message = hermes(f'<tool_call>{{"name": "x"{arguments}}}</tool_call>')

    assert [call.arguments for call in message.calls] == ["{}"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>now()</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "x", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "x", "arguments": "no"}</tool_call>',
        '<tool_call>{[1]: "x", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "x" "arguments": {}}</tool_call>',
        '<tool_call>{"name": NaN}</tool_call>',
        '<tool_call>{"name": ' + "[" * 100_000,
    ],
)
def test_a_malformed_call_is_content(text: str) -> None:
    message = hermes(f"a {text} b")

    assert (message.content, message.calls) == (f"a {text} b", [])


def test_a_call_after_a_malformed_one_is_read() -> None:
    message = hermes('<tool_call><tool_call>{"name": "x"}</tool_call>')

    assert (message.content, message.decoded) == ("<tool_call>", [("x", {})])


def test_what_is_wrong_after_the_arguments_is_content() -> None:
    message = hermes('<tool_call>{"name": "x", "arguments": {"a": 1}, oops}</tool_call>')

    assert message.decoded == [("x", {"a": 1})]
    assert message.content == ", oops}</tool_call>"


def test_arguments_that_prove_to_be_no_json_are_left_as_they_are() -> None:
    message = hermes('<tool_call>{"name": "x", "arguments": {"a": 1, <b>}}</tool_call>')

    assert message.calls[0].arguments == '{"a": 1, '
    assert message.content == "<b>}}</tool_call>"


def test_calls_in_a_fence_at_the_beginning_are_calls() -> None:
    message = hermes(f"{FENCED}\n{FENCED}\nDone.\n```python\n1\n```")

    assert message.decoded == [("weather", {"city": "Oslo"})] * 2
    assert message.content == "Done.\n```python\n1\n```"


@pytest.mark.parametrize(
    "text",
    [
        f"Like this: {FENCED}",
        FENCED.replace("weather", "other"),
        FENCED.replace("arguments", "values"),
        '{"name": "now"}',
        "```json\n[1]\n```",
        "```python\nprint()\n```",
        " \n hello ",
    ],
)
def test_other_json_at_the_beginning_is_content(text: str) -> None:
    assert hermes(text) == Read(content=text)
