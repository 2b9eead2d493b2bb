"""Whatever the endpoint, a request gets the tokens of the chat, with an edge and without."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Final

import httpx
import pytest
from openai import AsyncOpenAI

from bench.run.services import Services
from tests.end_to_end.features import FEATURES, FEW, asked
from tests.guards import GUARD_S
from tests.local_models.chats import Json

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]


BESIDE: Final[Json] = {"prompt": "One, two, three,", "n_predict": 20, "temperature": 0.0}
CODE: Final = "def add(a, b):\n    return "


async def posted(url: str, path: str, bodies: Sequence[Json]) -> list[str]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as http:
        answers = await asyncio.gather(*(http.post(path, json=body) for body in bodies))
    assert [answer.text for answer in answers if not answer.is_success] == []
    return [answer.text for answer in answers]


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


ANSWER: Final = "The colours of the rainbow, in order: red, orange, yellow, green, blue. " * 8


async def test_a_given_answer_has_the_same_scores_with_an_edge_and_without(
    services: Services,
) -> None:
    """As lm-eval asks for them, in batches of texts or of tokens."""
    urls = services.verifier_url, services.edge_urls["eager"]
    tokens = [
        (await posted(urls[0], "/tokenize", [{"prompt": text}]))[0] for text in (CODE, ANSWER)
    ]
    ids = [json.loads(each)["tokens"] for each in tokens]
    for wanted in (0, 1):
        told: list[Json] = []
        for url, prompts in itertools.product(urls, ([CODE, ANSWER], ids)):
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", timeout=300) as client:
                asked = client.completions.create(
                    model="smollm2-135m", prompt=prompts, max_tokens=wanted,
                    echo=True, logprobs=1, temperature=0, seed=1234,
                )  # fmt: skip
                answer, _ = await asyncio.gather(asked, posted(url, "/completion", [BESIDE]))
            told.append([choice.to_dict() for choice in answer.choices])

        assert told == [told[0]] * 4
        for choice, text, prompt in zip(told[0], (CODE, ANSWER), ids, strict=True):
            found = choice["logprobs"]
            assert choice["text"].startswith(text)
            assert (choice["text"] == text) is (wanted == 0)
            assert len(found["tokens"]) == len(prompt) + wanted
            assert found["token_logprobs"][0] is None is found["top_logprobs"][0]
            assert found["text_offset"][1] == len(found["tokens"][0])


REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
CHOICES: Final = {"required": {"type": "any"}}


def as_messages(own: Json) -> Json:
    """Return a chat's settings as those of /v1/messages; others have the same names there."""
    asked = {**own}
    if tools := asked.pop("tools", None):
        functions = [tool["function"] for tool in tools]
        asked["tools"] = [
            {
                "name": f["name"],
                "description": f["description"],
                "input_schema": f["parameters"],
            }
            for f in functions
        ]
    if choice := asked.pop("tool_choice", None):
        asked["tool_choice"] = CHOICES[choice]
    if form := asked.pop("response_format", None):
        schema = form["json_schema"]["schema"]
        asked["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return asked


def as_response(own: Json) -> Json:
    """Return a chat's settings as those of /v1/responses."""
    asked = {**own, "max_output_tokens": own["max_tokens"]}
    del asked["max_tokens"]
    if tools := asked.pop("tools", None):
        asked["tools"] = [{"type": "function", **tool["function"]} for tool in tools]
    if form := asked.pop("response_format", None):
        asked["text"] = {"format": {"type": "json_schema", **form["json_schema"]}}
    return asked


async def messages(http: httpx.AsyncClient, prompt: str, own: Json) -> Json:
    """Return what a stream of /v1/messages adds up to."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, **own}
    stream = (await http.post("/v1/messages", json=body)).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    found: Json = {"text": "", "thinking": "", "partial_json": "", "names": []}
    for event in events:
        if event["type"] == "content_block_start" and "name" in event["content_block"]:
            found["names"].append(event["content_block"]["name"])
        if event["type"] == "content_block_delta":
            for name in found.keys() & event["delta"].keys():
                found[name] += event["delta"][name]
    usage, reason = events[-2]["usage"], events[-2]["delta"]["stop_reason"]
    return {**found, "reason": reason, "tokens": usage["output_tokens"]}


async def response(http: httpx.AsyncClient, prompt: str, own: Json) -> Json:
    """Return what a stream of /v1/responses ends with."""
    stream = await http.post("/v1/responses", json={"input": prompt, "stream": True, **own})
    found = json.loads(stream.text.rpartition("data: ")[2])["response"]
    texts = {i["type"]: i["content"][0]["text"] for i in found["output"] if "content" in i}
    calls = [item for item in found["output"] if item["type"] == "function_call"]
    ended = "tool_use" if calls else "end_turn"
    return {
        "text": texts.get("message", ""),
        "thinking": texts.get("reasoning", ""),
        "partial_json": "".join(call["arguments"] for call in calls),
        "names": [call["name"] for call in calls],
        "reason": "max_tokens" if found["status"] == "incomplete" else ended,
        "tokens": found["usage"]["output_tokens"],
    }


ENDPOINTS: Final = ((as_messages, messages), (as_response, response))


def of_chat(answer: Json) -> Json:
    """Return the same of a chat's answer."""
    (choice,) = answer["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return {
        "text": message["content"] or "",
        "thinking": message.get("reasoning_content", ""),
        "partial_json": "".join(call["arguments"] for call in calls),
        "names": [call["name"] for call in calls],
        "reason": REASONS[choice["finish_reason"]],
        "tokens": answer["usage"]["completion_tokens"],
    }


@pytest.mark.parametrize("feature", ["plain", "required", "schema", "shaped", "reasoning"])
async def test_each_endpoint_has_the_tokens_of_the_chat(
    services: Services, feature: str
) -> None:
    own, plain = FEATURES[feature], services.verifier_url
    fixed = {"seed": 7, "temperature": 1.0, "max_tokens": 12, **own}

    chats = await asked(plain, 1.0, [own] * len(FEW), FEW)
    for url in (plain, services.edge_urls["eager"]):
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as http:
            for translate, ask in ENDPOINTS:
                asks = [ask(http, prompt, translate(fixed)) for prompt in FEW]
                assert await asyncio.gather(*asks) == list(map(of_chat, chats))


@pytest.mark.parametrize("edge", ["", "bad"])
async def test_a_prompt_that_is_asked_again_was_cached(services: Services, edge: str) -> None:
    url = services.edge_urls[edge] if edge else services.verifier_url
    question = f"What do {edge or 'no'} drafts change in an answer? " * 8
    body: Json = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
    async with httpx.AsyncClient(base_url=url, timeout=GUARD_S) as http:
        asked = [(await http.post("/v1/chat/completions", json=body)).json() for _ in range(2)]

    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in asked]
    prompt = asked[0]["usage"]["prompt_tokens"]
    assert cached[0] < prompt / 2 < cached[1] < prompt
