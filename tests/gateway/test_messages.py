"""Every message that clients send reaches the chat template, with all that it carries."""

from __future__ import annotations

import pytest

from picospec.gateway.tokenizer import Json
from tests.gateway.scripted import Body, ByteTokenizer, ask

USER = {"role": "user", "content": "Hi"}
THOUGHT = {"reasoning": "b", "reasoning_content": "b"}


async def rendered(*messages: Json, **more: object) -> Body:
    """Return what the template got."""
    tokenizer = ByteTokenizer()
    answer = await ask({"messages": [USER, *messages], **more}, tokenizer=tokenizer)
    assert answer.status_code == 200, answer.text
    return tokenizer.rendered[0]


async def shown(message: Json) -> Json:
    return (await rendered(message))["messages"][1]


def calls(arguments: object, **more: object) -> Body:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call | more]}


BILLING = "x-anthropic-billing-header: cch=1;"
NOTHING: list[object] = []
AS_THEY_ARE = [
    {"role": "developer", "content": "a"},
    {"role": "user", "content": "a", "name": "Ada"},
    {"role": "tool", "content": "7", "tool_call_id": "c1"},
    {"role": "function", "name": "f", "content": "7"},
]


@pytest.mark.parametrize(
    ("role", "sent", "seen"),
    [
        *((each["role"], each, each) for each in AS_THEY_ARE),
        ("tool", {"content": None}, {"content": NOTHING}),
        ("assistant", {"content": None}, {"content": NOTHING}),
        ("assistant", {"refusal": "No."}, {"content": NOTHING}),
        ("assistant", {"content": "a", "reasoning_content": "b"}, {"content": "a", **THOUGHT}),
        (
            "assistant",
            {"content": "a", "reasoning": "b", "reasoning_content": "c"},
            {"content": "a", **THOUGHT},
        ),
        ("system", {"content": f"{BILLING}\nBe brief."}, {"content": "Be brief."}),
        ("system", {"content": BILLING}, {"content": NOTHING}),
        ("user", {"reasoning": "b", "content": "a"}, {"content": "a"}),
    ],
)
async def test_each_role_reaches_the_template(role: str, sent: Json, seen: Json) -> None:
    assert await shown({"role": role, **sent}) == {"role": role, **seen}


async def test_parts_are_texts() -> None:
    parts = [{"type": "thinking", "thinking": "b"}, {"type": "refusal", "refusal": "a"}]

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
    assert await shown(calls(sent, id="c1")) == {**calls(seen, id="c1"), "content": []}


async def test_a_call_in_the_older_form_is_a_tool_call() -> None:
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}

    assert await shown(old | {"content": None}) == {**calls({}), "content": []}
