"""What a grammar lets a model write is read as valid calls, by llguidance's own judgement."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from gateway.grammars import Tags
from gateway.json_schemas import LARK
from gateway.output.answer_grammar import AllowedOutput, Constraint, grammar
from gateway.output.output_format import FORMATS, FormatName
from tests.gateway.output.reading import (
    NAMES,
    STRING,
    THINK,
    Grammar,
    Tools,
    ids,
    read,
    validates,
)

TOOLS: Tools = {
    "plan": {
        "type": "object",
        "properties": {
            "from": {**STRING, "maxLength": 6},
            "days": {"type": "integer", "minimum": 0, "maximum": 99},
            "unit": {"enum": ["c", "cc"]},
            "deep": {"$ref": "#/$defs/Deep"},
        },
        "required": ["from", "unit"],
        "$defs": {
            "Deep": {
                "type": "object",
                "properties": {"x": {"type": "array", "items": {"type": ["boolean", "null"]}}},
                "additionalProperties": False,
            }
        },
    },
    "plan-2": {
        "type": "object",
        "properties": {
            "p": {**STRING, "pattern": "^[a-z]{2}/?$"},
            "q": {"type": "number"},
            "r": {"anyOf": [{**STRING, "maxLength": 4}, {"type": "null"}]},
            "s": {**STRING, "minLength": 2, "maxLength": 3},
        },
    },
    "now": {"type": "object", "properties": {}},
    "any": {"description": '} " # // \\ {', "title": "\u2028\n"},
}


def made(
    name: FormatName,
    special: Mapping[str, int],
    tools: Tools = TOOLS,
    *,
    required: bool = True,
    parallel: bool = True,
    content: Constraint | None = None,
    tags: Tags | None = None,
    opened: bool = False,
) -> Grammar:
    wanted = AllowedOutput(tools, required=required, parallel=parallel, content=content)
    return Grammar(grammar(wanted, FORMATS[name], special, tags, opened=opened), special)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_grammar_accepts_is_read_as_calls_that_validate(
    name: FormatName, special: bool, parallel: bool
) -> None:
    form = FORMATS[name]
    accepted = made(name, ids(*form.markers) if special else {}, parallel=parallel)

    for seed in range(12):
        text = accepted.write(random.Random(seed))
        message = read(form, list(text), tools=TOOLS)

        assert message.content == "", text
        assert len(message.calls) == 1 or (message.calls and parallel), text
        for call in message.calls:
            assert validates(TOOLS[call.name], call.arguments), text


@pytest.mark.parametrize("required", [True, False])
def test_arguments_that_a_tool_leaves_open_are_free(required: bool) -> None:
    accepted = made("hermes", {}, {"run": {"type": "object"}}, required=required)

    for arguments in ("{}", '{"a": 1, "b": {"c": [null]}}'):
        call = f'{{"name": "run", "arguments": {arguments}}}'
        assert accepted.accepts(f"<tool_call>\n{call}\n</tool_call>")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_free_text_is_accepted_where_calls_are_not_required(
    name: FormatName, special: bool
) -> None:
    form = FORMATS[name]
    accepted = made(name, ids(*form.markers) if special else {}, required=False)

    for seed in range(12):
        text = accepted.write(random.Random(seed))
        for call in read(form, list(text), tools=TOOLS).calls:
            assert validates(TOOLS[call.name], call.arguments), text
    assert accepted.accepts("")
    assert accepted.accepts("It is cold.\n```python\n{}\n```")


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("hermes", 'Hm. <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True),
        ("hermes", 'Hm. <tool_call>\n{"name": "now", "arguments": {"a": 1}}\n', False),
        ("hermes", "Hm. <tool_call>no", False),
        ("hermes", '```json\n{"name": "now", "arguments": {}}\n```', True),
        ("hermes", '```json\n{"name": "now", "arguments": {"a": 1}}\n```', False),
        ("hermes", '{"name": "now", "arguments": {"a": 1}}', False),
        ("llama", '{"name": "now", "parameters": {}}', True),
        ("llama", ' {"name": "now", "parameters": {"a": 1}}', False),
        ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}]', True),
        ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": 1}]', False),
        ("pythonic", "[now()]", True),
        ("pythonic", " [now(a=1)]", False),
        ("qwen_coder", "So:<tool_call>\n<function=now>\n</function>\n</tool_call>", True),
        ("qwen_coder", "So:<tool_call>\n<function=now>\n<parameter=a>", False),
    ],
)
def test_no_call_escapes_a_grammar_that_does_not_require_calls(
    name: FormatName, text: str, accepted: bool
) -> None:
    assert made(name, {}, required=False).accepts(text) is accepted


@pytest.mark.parametrize(("city", "accepted"), [("a\n<b>", True), ("a</parameter>", False)])
def test_a_text_value_does_not_hold_the_end_of_its_parameter(city: str, accepted: bool) -> None:
    tools = {"f": {"properties": {"city": {"type": "string"}}}}
    value = f"<parameter=city>\n{city}\n</parameter>"

    text = f"<tool_call>\n<function=f>\n{value}\n</function>\n</tool_call>"

    assert made("qwen_coder", {}, tools).accepts(text) is accepted


@pytest.mark.parametrize("name", ["hermes", "mistral", "qwen_coder"])
def test_an_answer_is_a_call_or_keeps_to_its_constraint(name: FormatName) -> None:
    schema = {"type": "object", "properties": {"t": {"type": "integer"}}, "required": ["t"]}
    accepted = made(name, {}, required=False, content={"json": schema})

    texts = [accepted.write(random.Random(seed)) for seed in range(20)]

    calls = [bool(read(FORMATS[name], [text], tools=TOOLS).calls) for text in texts]
    assert set(calls) == {True, False}
    assert all(call or validates(schema, text) for call, text in zip(calls, texts, strict=True))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"json": {"type": "integer"}}, "12"),
        ({"json_object": True}, '{"a": 1}'),
        ({"regex": "a/\\/b"}, "a//b"),
        ({"choice": ["a", "ab"]}, "ab"),
    ],
)
def test_reasoning_may_come_before_content_that_keeps_to_a_constraint(
    content: Constraint, text: str
) -> None:
    may = made("hermes", {}, {}, required=False, content=content, tags=THINK)
    does = made("hermes", {}, {}, required=False, content=content, tags=THINK, opened=True)

    assert may.accepts(text)
    assert may.accepts(f"<think>\nwhy?\n</think>\n\n{text}")
    assert not may.accepts(f"<think>\nwhy?\n</think>\n\n{text}x")
    assert does.accepts(f"why?\n</think>{text}")
    assert not does.accepts(text)


def test_reasoning_between_special_tokens_may_come_before_required_calls() -> None:
    special = ids("<think>", "</think>")
    accepted = made("pythonic", special, tags=THINK, opened=True)

    text = accepted.write(random.Random(1))

    _, _, answer = text.partition("</think>")
    assert read(FORMATS["pythonic"], [answer.strip()], tools=TOOLS).calls


MANY = {
    "properties": {f"a{n}": {"$ref": "#/$defs/x"} for n in range(100)},
    "$defs": {"x": {"enum": ["y" * 2000]}},
}
"""Each argument's rule would have a copy of the definitions."""


@pytest.mark.parametrize(
    ("name", "schema", "says"),
    [
        ("pythonic", {"anyOf": []}, "anyOf"),
        ("pythonic", {"properties": {"a b": {}}}, "'a b'"),
        ("qwen_coder", {"properties": {"a>": {}}}, "'a>'"),
        ("qwen_coder", {"properties": {}, "required": ["a"]}, "required"),
        ("qwen_coder", {"properties": {"a": {**STRING, "format": "date"}}}, "format"),
        ("qwen_coder", {"properties": {"a": {**STRING, "minLength": "1}/"}}}, "integer"),
        ("qwen_coder", {"properties": {}, "required": [{}]}, "required"),
        ("qwen_coder", MANY, "times arguments"),
        ("pythonic", MANY, "times arguments"),
    ],
)
def test_a_schema_that_a_format_cannot_express_is_an_error(
    name: FormatName, schema: Mapping[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        made(name, {}, {"f": schema})


@pytest.mark.parametrize(
    ("name", "content"), [("llama", {"json": {}}), ("hermes", {"grammar": "root ::= [a]"})]
)
def test_a_constraint_that_cannot_be_combined_with_calls_is_an_error(
    name: FormatName, content: Constraint
) -> None:
    with pytest.raises(ValueError, match=r"a grammar in GBNF|cannot choose"):
        made(name, {}, required=False, content=content)


def test_a_text_in_lark_has_a_call_of_its_own_beside_other_tools() -> None:
    said = 'Well.\n<tool_call>\n{"name": "patch"}\naa\n</tool_call>'
    weather = {"properties": {"city": STRING}}

    accepted = made(
        "hermes", {}, {"patch": {LARK: 'start: "a"+'}, "weather": weather}, required=False
    )

    assert accepted.accepts(said)
    assert accepted.accepts('{"name": "weather", "arguments": {"city": "Rom"}}')
    assert not accepted.accepts(said.replace("aa", "ab"))
    assert not accepted.accepts(
        said.replace('"patch"', '"patch", "arguments": {"input": "aa"}')
    )
