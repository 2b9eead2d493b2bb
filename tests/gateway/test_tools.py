"""Tools: what the template shows, what the answer may call, and what is no tool."""

from __future__ import annotations

import pytest

from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.chat.tools import ToolUse
from picospec.gateway.grammars import structured
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, client_of, make_app

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
GRAMMAR = frozenset({structured.NAME})


def use_of(**body: object) -> ToolUse:
    return ChatRequest.model_validate({"messages": [USER], **body}).tool_use


def strict(**function: object) -> dict[str, object]:
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
    ("body", "expected"),
    [
        ({"tools": [TOOL_F]}, (TOOL_F,)),
        ({"tools": [TOOL_F], "tool_choice": "none"}, (TOOL_F,)),
        ({"tools": [TOOL_F], "tool_choice": "required"}, (TOOL_F,)),
        ({"tools": [TOOL_F], "tool_choice": "none", "hides": True}, ()),
    ],
)
async def test_the_template_gets_the_tools_unless_the_target_hides_unused_ones(
    body: dict[str, object], expected: object
) -> None:
    tokenizer = ByteTokenizer(hides_unused_tools="hides" in body)
    app = make_app(ScriptedEngine(features=GRAMMAR), tokenizer=tokenizer)
    async with client_of(app) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": [USER], **body})

    assert answer.status_code == 200
    assert tokenizer.rendered[0]["tools"] == expected


async def test_tools_without_a_place_in_the_template_are_a_400() -> None:
    app = make_app(ScriptedEngine(), tokenizer=ByteTokenizer(takes_tools=False))
    async with client_of(app) as client:
        body = {"messages": [USER], "tools": [TOOL_F]}
        answers = [
            await client.post("/v1/chat/completions", json=body | {"tool_choice": choice})
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
    body: dict[str, object], param: str
) -> None:
    answers = []
    for features in (frozenset(), GRAMMAR):
        async with client_of(make_app(ScriptedEngine(features=features))) as client:
            body = {"messages": [USER], **body}
            answers.append(await client.post("/v1/chat/completions", json=body))

    assert [answer.status_code for answer in answers] == [400, 200]
    error = answers[0].json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


LARGE = {"description": "a" * structured.MAX_BYTES}
BAD = [
    ({"tools": TOOL_F}, "tools"),
    ({"tools": [TOOL_F] * 129}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"function": F}]}, "tools.0.type"),
    ({"tools": [strict(name=None)]}, "tools.0.function.name"),
    ({"tools": [strict(name="a b")]}, "tools.0.function.name"),
    ({"tools": [strict(name="a" * 65)]}, "tools.0.function.name"),
    ({"tools": [strict(description=7)]}, "tools.0.function.description"),
    ({"tools": [strict(parameters=[])]}, "tools.0.function.parameters"),
    ({"tools": [strict(parameters=LARGE)]}, "tools.0.function.parameters"),
    ({"tools": [strict(strict="yes")]}, "tools.0.function.strict"),
    ({"tools": [TOOL_F], "tool_choice": "any"}, "tool_choice.type"),
    ({"tools": [TOOL_F], "tool_choice": 7}, "tool_choice"),
    ({"tools": [TOOL_F], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [TOOL_F], "tool_choice": NAMED}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [TOOL_F], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("body", "param"), BAD)
async def test_a_bad_tool_is_a_400_that_names_the_field(
    body: dict[str, object], param: str
) -> None:
    engine = ScriptedEngine(features=GRAMMAR)
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": [USER], **body})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.jobs == []
