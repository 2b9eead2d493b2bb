"""Ollama's doors and llama-server's give the tokens of OpenAI's, with an edge and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

import httpx
import pytest

from picospec.bench.run.services import Services
from tests.end_to_end.test_features import FEATURES, PROMPTS, SCHEMA, asked, post
from tests.models.chats import Json

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

THERE: Final[Json] = {
    "plain": {},
    "required": FEATURES["required"],
    "schema": {"format": SCHEMA, "reasoning_format": "none"},
    "reasoning": {"think": True},
}
CODE: Final = "def add(a, b):\n    return "


async def posted(url: str, path: str, bodies: Sequence[Json]) -> list[str]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as http:
        answers = await asyncio.gather(*(post(http, path, body) for body in bodies))
    assert [answer.text for answer in answers if not answer.is_success] == []
    return [answer.text for answer in answers]


def of_ollama(text: str) -> Json:
    """Return what the lines of a stream add up to."""
    *parts, last = map(json.loads, text.splitlines())
    messages = [part["message"] for part in parts]
    calls = [call["function"] for each in messages for call in each.get("tool_calls", ())]
    return {
        "content": "".join(each["content"] for each in messages),
        "thinking": "".join(each.get("thinking", "") for each in messages),
        "calls": [(call["name"], call["arguments"]) for call in calls],
        "tokens": (last["prompt_eval_count"], last["eval_count"]),
        "cut": last["done_reason"] == "length",
    }


def of_chat(answer: Json) -> Json:
    """Return the same of a chat's answer."""
    (choice,) = answer["choices"]
    message, calls, rest = choice["message"], [], ""
    for call in message.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            rest += call["function"]["arguments"]
        else:
            calls.append((call["function"]["name"], arguments))
    return {
        "content": (message["content"] or "") + rest,
        "thinking": message.get("reasoning_content", ""),
        "calls": calls,
        "tokens": (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
        "cut": choice["finish_reason"] == "length",
    }


@pytest.mark.parametrize("feature", THERE)
async def test_ollamas_chat_has_the_tokens_of_the_chat(
    services: Services, feature: str
) -> None:
    own, plain = FEATURES[feature], services.verifier_url
    there = {name: value for name, value in THERE[feature].items() if name != "max_tokens"}
    options = {"seed": 7, "temperature": 1.0, "num_predict": own.get("max_tokens", 12)}
    bodies = [
        {"messages": [{"role": "user", "content": prompt}], "options": options, **there}
        for prompt in PROMPTS
    ]

    chats = await asked(plain, 1.0, [own] * len(PROMPTS))
    for url in (plain, services.edge_urls["eager"]):
        lines = await posted(url, "/api/chat", bodies)
        assert list(map(of_ollama, lines)) == list(map(of_chat, chats))


async def test_completions_have_the_tokens_of_v1_completions(services: Services) -> None:
    raw: Json = {"prompt": CODE, "stream": False, "raw": True}
    for heat in (0.0, 1.0):
        fixed: Json = {"seed": 7, "temperature": heat}
        options = {**fixed, "num_predict": 12}
        openai = {"prompt": CODE, "max_tokens": 12, **fixed}
        (plain,) = await posted(services.verifier_url, "/v1/completions", [openai])
        text = json.loads(plain)["choices"][0]["text"]
        for url in (services.verifier_url, services.edge_urls["eager"]):
            native = {"prompt": CODE, "n_predict": 12, **fixed}
            (found,) = await posted(url, "/completion", [native])
            (other,) = await posted(url, "/api/generate", [{**raw, "options": options}])
            assert json.loads(found)["content"] == json.loads(other)["response"] == text
