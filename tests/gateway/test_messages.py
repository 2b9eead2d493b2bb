"""Every message that clients send reaches the chat template, with all that it carries."""

from __future__ import annotations

import pytest

from picospec.gateway.ports import Json
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, client_of, make_app

USER = {"role": "user", "content": "Hi"}


async def rendered(*messages: Json, **more: object) -> dict[str, object]:
    """Return what the template got."""
    tokenizer = ByteTokenizer()
    async with client_of(make_app(ScriptedEngine(), tokenizer=tokenizer)) as client:
        body = {"messages": [USER, *messages], **more}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return tokenizer.rendered[0]


async def shown(message: Json) -> Json:
    return (await rendered(message))["messages"][1]


def calls(arguments: object, **more: object) -> dict[str, object]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call | more]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "a"}, {"role": "developer", "content": "a"}),
        (
            {"role": "user", "content": "a", "name": "Ada"},
            {"role": "user", "content": "a", "name": "Ada"},
        ),
        (
            {"role": "tool", "content": "7", "tool_call_id": "c1"},
            {"role": "tool", "content": "7", "tool_call_id": "c1"},
        ),
        (
            {"role": "function", "name": "f", "content": "7"},
            {"role": "function", "content": "7", "name": "f"},
        ),
        ({"role": "tool", "content": None}, {"role": "tool", "content": []}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": []}),
        ({"role": "assistant", "refusal": "No."}, {"role": "assistant", "content": []}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "b"},
            {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "c"},
            {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"},
        ),
        (
            {"role": "system", "content": "x-anthropic-billing-header: cch=1;\nBe brief."},
            {"role": "system", "content": "Be brief."},
        ),
        (
            {"role": "system", "content": "x-anthropic-billing-header: cch=1;"},
            {"role": "system", "content": []},
        ),
        ({"role": "user", "reasoning": "b", "content": "a"}, {"role": "user", "content": "a"}),
    ],
)
async def test_each_role_reaches_the_template(message: Json, expected: Json) -> None:
    assert await shown(message) == expected


async def test_parts_are_texts() -> None:
    parts = [
        {"type": "thinking", "thinking": "b"},
        {"type": "refusal", "refusal": "a"},
    ]

    message = await shown({"role": "assistant", "content": parts})

    assert message["content"] == [{"type": "text", "text": text} for text in "ba"]


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ('{"b": 1, "a": [2.0, null]}', {"b": 1, "a": [2.0, None]}),
        ({"b": 1}, {"b": 1}),
        ("", {}),
        ("[1]", {}),
        ('{"b": ', {}),
        ("[" * 9000, {}),
    ],
)
async def test_arguments_are_an_object_for_the_template(sent: object, seen: object) -> None:
    message = await shown(calls(sent, id="c1"))

    (call,) = message["tool_calls"]
    assert call == {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": seen},
    }
    assert message["content"] == []


async def test_a_call_in_the_older_form_is_a_tool_call() -> None:
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}

    assert await shown(old | {"content": None}) == {
        **calls({}),
        "content": [],
    }


async def test_template_variables_reach_the_template() -> None:
    seen = await rendered(chat_template_kwargs={"x": [1]})
    low = await rendered(reasoning_effort="low")
    none = await rendered(reasoning_effort="none")
    own = {"enable_thinking": 0, "reasoning_effort": "high", "x": None, "y": "auto"}
    both = await rendered(reasoning_effort="low", chat_template_kwargs=own)

    assert seen["options"] == {"x": [1]}
    assert low["options"] == {"reasoning_effort": "low", "enable_thinking": True}
    assert none["options"] == {"reasoning_effort": "none", "enable_thinking": False}
    assert both["options"] == {"reasoning_effort": "low", "enable_thinking": 0}


BAD = [
    ({"role": "user"}, "messages.1.content"),
    ({"role": "user", "content": 7}, "messages.1.content"),
    ({"role": "user", "content": ["a"]}, "messages.1.content.0"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content.0.text"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "messages.1.content.0.type"),
    ({"role": "user", "content": [{"type": "input_audio"}]}, "messages.1.content.0.type"),
    ({"role": "user", "content": "", "name": 7}, "messages.1.name"),
    ({**calls("{}"), "role": "user", "content": ""}, "messages.1.tool_calls"),
    ({"role": "assistant", "tool_calls": [{}]}, "messages.1.tool_calls.0.function"),
    (calls(7), "messages.1.tool_calls.0.function.arguments"),
    (calls("{}", type="custom"), "messages.1.tool_calls.0.type"),
    (calls("{}", id=7), "messages.1.tool_calls.0.id"),
    ({"role": "assistant", "audio": {"id": "a"}}, "messages.1.audio"),
    ({"role": "assistant", "function_call": "f"}, "messages.1.function_call"),
    ({"role": "assistant", "reasoning": []}, "messages.1.reasoning"),
    ({"role": "tool", "content": "", "tool_call_id": 7}, "messages.1.tool_call_id"),
]
BAD_BODIES = [
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning_format": "deepseek-legacy"}, "reasoning_format"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(
    ("change", "param"), [*((({"messages": [USER, m]}), p) for m, p in BAD), *BAD_BODIES]
)
async def test_a_bad_message_is_a_400_that_names_the_field(change: Json, param: str) -> None:
    engine = ScriptedEngine()
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": [USER]} | change)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.jobs == []
