"""Every message that clients send reaches the chat template, with all that it carries."""

from __future__ import annotations

import pytest

from picospec.gateway.tokenizer import Json
from tests.gateway.scripted import ByteTokenizer, ask

USER = {"role": "user", "content": "Hi"}


async def rendered(*messages: Json, **more: object) -> dict[str, object]:
    """Return what the template got."""
    tokenizer = ByteTokenizer()
    answer = await ask({"messages": [USER, *messages], **more}, tokenizer=tokenizer)
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
