"""Calls whose values are plain text, which the schema turns into JSON."""

from __future__ import annotations

import json

import pytest

from picospec.gateway.output.formats.other_calls import QwenCoder
from tests.gateway.output.reading import Read, moments, read

STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
OBJECT, ANY = {"type": "object"}, {}
OPTIONAL = {"anyOf": [STRING, {"type": "null"}]}


def call(parameters: str) -> str:
    return f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>"


def qwen(text: str, schema: object = STRING) -> Read:
    tools = {"f": {"type": "object", "properties": {"a": schema}}}
    return read(QwenCoder(), list(text), tools=tools)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (STRING, "\nOslo\n", "Oslo"),
        (STRING, "Oslo", "Oslo"),
        (STRING, "\n\n two\n\nlines \n\n", "\n two\n\nlines \n"),
        (STRING, "\n\n", ""),
        (STRING, "\n12\n", "12"),
        (STRING, "\nnull\n", "null"),
        (STRING, '\n"q" \\ <b>\n', '"q" \\ <b>'),
        (INTEGER, "\n12\n", 12),
        (INTEGER, "twelve", "twelve"),
        (NUMBER, "12", 12),
        (NUMBER, "1.5", 1.5),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        (OPTIONAL, "None", None),
        (OPTIONAL, "12", "12"),
        (OPTIONAL, "Oslo", "Oslo"),
        ({"type": ["integer", "string"]}, "12", 12),
        ({"enum": ["a", 1]}, "1", 1),
        ({"enum": ["a", "1"]}, "1", "1"),
        ({"const": "x"}, "x", "x"),
        (OBJECT, '\n{"b": "</parameter>"}\n', {"b": "</parameter>"}),
        (OBJECT, "{broken", "{broken"),
        (ANY, "[1, 2]", [1, 2]),
        (ANY, "NaN", "NaN"),
        (ANY, "Oslo", "Oslo"),
    ],
)
def test_the_schema_says_what_a_text_means(schema: object, text: str, value: object) -> None:
    message = qwen(call(f"<parameter=a>{text}</parameter>\n"), schema)

    assert message.decoded == [("f", {"a": value})]


def test_a_string_is_passed_on_as_it_comes() -> None:
    pieces = ["<function=f><parameter=a>\n", "one", "\n", 'two"', "\n</para", "meter>"]

    shown = moments(QwenCoder(), pieces, tools={"f": {"properties": {"a": STRING}}})

    assert [moment.calls[0].arguments for moment in shown[:6]] == [
        '{"a": "',
        '{"a": "one',
        '{"a": "one',
        '{"a": "one\\ntwo\\"',
        '{"a": "one\\ntwo\\"',
        '{"a": "one\\ntwo\\""',
    ]


def test_a_call_has_several_parameters_or_none() -> None:
    two = "<parameter=a>\nx\n</parameter>\n<parameter=b>\n2\n</parameter>\n"

    assert qwen(call(two) + call("")).decoded == [("f", {"a": "x", "b": 2}), ("f", {})]


def test_the_first_tag_may_be_missing() -> None:
    assert qwen("Well <function=f></function></tool_call>").decoded == [("f", {})]


def test_text_between_parameters_ends_the_arguments_and_is_content() -> None:
    message = qwen(call("<parameter=a>\nx\n</parameter>\noops\n"))

    assert [json.loads(each.arguments) for each in message.calls] == [{"a": "x"}]
    assert message.content == "\noops\n</function>\n</tool_call>"
