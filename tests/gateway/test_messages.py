"""Every message and every wish to think, as any server spells it, reaches the chat template."""

from __future__ import annotations

import pytest

from picospec.gateway.ports import Json
from tests.gateway.scripted import Body, ByteTokenizer, ScriptedEngine, ask, job_of, refusal

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


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
LOW = {"enable_thinking": True, "reasoning_effort": "low"}
NONE = {"enable_thinking": False, "reasoning_effort": "none"}
OWN = {"enable_thinking": 0, "reasoning_effort": "high", "x": None, "y": "auto"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"reasoning": {"effort": "low", "summary": "auto"}}, LOW),
        ({"reasoning": {"effort": "none"}}, NONE),
        ({"reasoning": {"enabled": True}}, ON),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"think": True}, ON),
        ({"think": "low"}, LOW),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, ON),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"enable_thinking": False}, OFF),
        ({"think": True, "reasoning_effort": "low"}, LOW),
        ({"reasoning_effort": "low"}, LOW),
        ({"reasoning_effort": "none"}, NONE),
        ({"chat_template_kwargs": {"x": [1]}}, {"x": [1]}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": OWN},
            {"reasoning_effort": "low", "enable_thinking": 0},
        ),
        ({"reasoning_effort": "low", "chat_template_kwargs": OFF}, {**LOW, **OFF}),
        ({"think": False, "thinking": {"type": "disabled"}, "reasoning_effort": "none"}, NONE),
    ],
)
async def test_each_spelling_reaches_the_template(asked: Body, expected: Body) -> None:
    assert (await rendered(**asked))["options"] == expected


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "reasoning"),
        ({"reasoning": {"effort": "low", "enabled": False}}, "reasoning.enabled"),
        ({"reasoning": {"max_tokens": 100}}, "reasoning.max_tokens"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
        ({"reasoning_effort": "none", "think": True}, "think"),
        ({"think": "very"}, "think"),
        ({"think": True, "thinking": {"type": "disabled"}}, "thinking"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}, "enable_thinking": False}, "enable_thinking"),
        ({"think": False, "chat_template_kwargs": ON}, "chat_template_kwargs"),
    ],
)
async def test_what_contradicts_itself_is_a_400_that_names_the_field(
    asked: Body, param: str
) -> None:
    assert await refusal({"messages": [USER], **asked}) == (400, param)


class Spelling(ByteTokenizer):
    """Its tags are tokens of their own."""

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        tags = {"<think>": [1], "</think>": [2]}
        return tags.get(text) or super().encode(text, special=special, begin=begin)


@pytest.mark.parametrize(
    "name",
    ["thinking_token_budget", "thinking_budget", "thinking_budget_tokens",
     "reasoning_budget_tokens"],
)  # fmt: skip
async def test_a_limit_of_reasoning_reaches_the_engine(name: str) -> None:
    engine = ScriptedEngine(features=frozenset({"thinking_budget"}))
    tokenizer = Spelling(template="<think></think>")

    job = await job_of({"messages": [USER], name: 5}, engine, tokenizer)

    assert job.extras["thinking_budget"] == {"tokens": 5, "closing": 2, "opening": 1}


@pytest.mark.parametrize(
    ("features", "template", "status"),
    [((), "<think>", 400), (("thinking_budget",), "<think>", 400),
     (("thinking_budget",), "", 200)],
)  # fmt: skip
async def test_a_limit_that_cannot_be_kept_is_a_400_unless_nothing_is_thought(
    features: tuple[str, ...], template: str, status: int
) -> None:
    engine = ScriptedEngine(features=frozenset(features))
    body = {"messages": [USER], "thinking_token_budget": 5}

    answer = await ask(body, engine, tokenizer=ByteTokenizer(template=template))

    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["param"] == "thinking_token_budget"


async def test_a_budget_is_a_target_that_is_named_as_ignored() -> None:
    asked = {"thinking": {"type": "enabled", "budget_tokens": 4096}}

    answer = await ask({"messages": [USER], **asked})

    assert answer.headers["x-picospec-ignored"] == "thinking.budget_tokens"
