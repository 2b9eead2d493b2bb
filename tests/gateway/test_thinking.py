"""The spellings in which servers are asked to think mean the same here."""

from __future__ import annotations

import pytest

from tests.gateway.scripted import ByteTokenizer, ask
from tests.gateway.test_messages import USER, rendered

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
LOW = {"enable_thinking": True, "reasoning_effort": "low"}
NONE = {"enable_thinking": False, "reasoning_effort": "none"}


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
        ({"think": False, "thinking": {"type": "disabled"}, "reasoning_effort": "none"}, NONE),
    ],
)
async def test_each_spelling_reaches_the_template(
    asked: dict[str, object], expected: dict[str, object]
) -> None:
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
    asked: dict[str, object], param: str
) -> None:
    answer = await ask({"messages": [USER], **asked}, tokenizer=ByteTokenizer())

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_budget_is_a_target_that_is_named_as_ignored() -> None:
    asked = {"thinking": {"type": "enabled", "budget_tokens": 4096}}

    answer = await ask({"messages": [USER], **asked})

    assert answer.headers["x-picospec-ignored"] == "thinking.budget_tokens"
