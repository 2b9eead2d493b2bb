"""At the verifier and at edges, by each door an answer is that of the same chat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from picospec.bench.run.services import Services
from tests.end_to_end.test_features import PROMPTS, SCHEMA, STRICT, TOOLS, UNSPLIT
from tests.models.chats import Json

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

FORMAT: Final = {"name": "a", "schema": SCHEMA}
FEATURES: Final[Mapping[str, tuple[Json, Json]]] = {
    "plain": ({"max_tokens": 12}, {"max_output_tokens": 12}),
    "reasoning": ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
    "required": (
        {"tools": TOOLS, "tool_choice": "required", **UNSPLIT},
        {
            "tools": [{"type": "function", **each["function"]} for each in TOOLS],
            "tool_choice": "required",
            **UNSPLIT,
        },
    ),
    "strict": (
        {"tools": STRICT, "parallel_tool_calls": False},
        {
            "tools": [{"type": "function", **each["function"]} for each in STRICT],
            "parallel_tool_calls": False,
        },
    ),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": FORMAT}, **UNSPLIT},
        {"text": {"format": {"type": "json_schema", **FORMAT}}, **UNSPLIT},
    ),
}
"""What asks for a feature, by chat and by response."""


async def ask(http: httpx.AsyncClient, url: str, body: Json) -> Any:  # noqa: ANN401 - JSON
    answer = await http.post(url, json={"seed": 7, **body})
    assert answer.is_success, answer.text
    return answer.json()


async def by_chat(http: httpx.AsyncClient, url: str, prompt: str, more: Json) -> object:
    """Return reasoning, text, calls and numbers of tokens."""
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "max_tokens": 16, **more}
    answer = await ask(http, f"{url}/v1/chat/completions", body)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return (
        message.get("reasoning_content", ""),
        message["content"] or "",
        [(call["name"], call["arguments"]) for call in calls],
        (usage["prompt_tokens"], usage["completion_tokens"]),
    )


async def by_response(http: httpx.AsyncClient, url: str, prompt: str, more: Json) -> object:
    """Return the same of a response."""
    body = {"input": prompt, "max_output_tokens": 16, **more}
    answer = await ask(http, f"{url}/v1/responses", body)
    found, usage = answer["output"], answer["usage"]
    texts = {item["type"]: item["content"][0]["text"] for item in found if "content" in item}
    return (
        texts.get("reasoning", ""),
        texts.get("message", ""),
        [(item["name"], item["arguments"]) for item in found if "arguments" in item],
        (usage["input_tokens"], usage["output_tokens"]),
    )


@pytest.mark.parametrize("feature", FEATURES)
async def test_a_response_is_the_chat_with_right_and_with_useless_drafts(
    services: Services, feature: str
) -> None:
    chat, response = FEATURES[feature]
    urls = [services.verifier_url, services.edge_urls["eager"], services.edge_urls["noise"]]

    async with httpx.AsyncClient(trust_env=False, timeout=300) as http:
        for heat in ({"temperature": 0.0}, {"temperature": 1.0}):
            wanted = await asyncio.gather(
                *(by_chat(http, urls[0], prompt, chat | heat) for prompt in PROMPTS)
            )
            for url in urls:
                found = await asyncio.gather(
                    *(by_response(http, url, prompt, response | heat) for prompt in PROMPTS)
                )
                assert found == wanted
