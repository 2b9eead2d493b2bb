"""Tools: what the template shows, what the answer may call, and what is no tool."""

from __future__ import annotations

import pytest

from picospec.gateway import grammars
from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.tools import ToolUse
from tests.gateway.scripted import Body, ByteTokenizer, ScriptedEngine, ask

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
F = {"name": "f", "description": "Adds.", "parameters": SCHEMA}
TOOL_F = {"type": "function", "function": F}
TOOL_G = {"type": "function", "function": {"name": "g", "parameters": None}}
SHOWN_G = {
    "type": "function",
    "function": {"name": "g", "description": None, "parameters": None},
}
NAMED = {"type": "function", "function": {"name": "g"}}
GRAMMAR = frozenset({grammars.NAME})


def use_of(**body: object) -> ToolUse:
    return ChatRequest.model_validate({"messages": [USER], **body}).tool_use


def strict(**function: object) -> Body:
    return {"type": "function", "function": {**F, "strict": True, **function}}


def test_the_use_of_tools_is_what_the_request_says() -> None:
    two = {"tools": [TOOL_F, TOOL_G]}
    shown = (TOOL_F, SHOWN_G)

    assert use_of() == use_of(tools=[]) == ToolUse()
    assert use_of(**two, tool_choice="none") == ToolUse(shown)
    assert use_of(**two, tool_choice="none").callable == ()
    assert use_of(tools=[], tool_choice="auto") == ToolUse()
    assert use_of(**two) == use_of(**two, tool_choice="auto") == ToolUse(shown, "auto")
    assert use_of(**two, tool_choice="required") == ToolUse(shown, "required")
    assert use_of(**two, parallel_tool_calls=False).parallel is False
    assert use_of(**two, tool_choice=NAMED) == ToolUse(shown, "required", "g", parallel=False)
    assert use_of(tools=[strict(), TOOL_G]).strict == {"f"}


def test_what_the_template_shows_has_no_field_that_it_does_not_know() -> None:
    tool = {"type": "function", "function": {**F, "strict": True, "x": 1}, "defer": True}

    assert use_of(tools=[tool]).tools == (strict(),)


@pytest.mark.parametrize(
    ("choice", "hides", "expected"),
    [
        ("auto", False, (TOOL_F,)),
        ("none", False, (TOOL_F,)),
        ("required", False, (TOOL_F,)),
        ("none", True, ()),
    ],
)
async def test_the_template_gets_the_tools_unless_the_target_hides_unused_ones(
    choice: str, hides: bool, expected: object
) -> None:
    tokenizer = ByteTokenizer(hides_unused_tools=hides)
    body = {"messages": [USER], "tools": [TOOL_F], "tool_choice": choice}

    await ask(body, ScriptedEngine(features=GRAMMAR), tokenizer=tokenizer)

    assert tokenizer.rendered[0]["tools"] == expected


async def test_tools_without_a_place_in_the_template_are_a_400() -> None:
    body = {"messages": [USER], "tools": [TOOL_F]}

    answers = [
        await ask(body | {"tool_choice": choice}, tokenizer=ByteTokenizer(takes_tools=False))
        for choice in ("auto", "none")
    ]

    assert [answer.status_code for answer in answers] == [400, 200]
    assert answers[0].json()["error"]["param"] == "tools"


NEEDS_GRAMMAR = [
    ({"tools": [TOOL_F], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL_F, TOOL_G], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [TOOL_G, strict()]}, "tools.1.function.strict"),
]


@pytest.mark.parametrize(("body", "param"), NEEDS_GRAMMAR)
async def test_a_promise_that_only_a_grammar_keeps_needs_an_engine_with_one(
    body: Body, param: str
) -> None:
    answers = [
        await ask({"messages": [USER], **body}, ScriptedEngine(features=features))
        for features in (frozenset(), GRAMMAR)
    ]

    assert [answer.status_code for answer in answers] == [400, 200]
    error = answers[0].json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
