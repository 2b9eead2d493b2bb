"""What an edge tells of an answer, on real services: whose its tokens are, and what it took."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from bench.run.services import Services
from tests.guards import GUARD_S

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="session")]

HAIKU, CODE = "Write a haiku about light.", "def fibonacci(n):"
GREEDY: dict[str, object] = {"temperature": 0}
WARM: dict[str, object] = {"temperature": 1, "top_p": 0.95, "seed": 5}
CLIENTS_KEEP_S = 5
"""An idle connection: httpx, and the openai SDK over it."""


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=GUARD_S, trust_env=False)


async def chat(url: str, prompt: str, **settings: object) -> Any:  # noqa: ANN401 - JSON
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 24, **settings}
    async with client_of(url) as client:
        reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def text(url: str, prompt: str, **settings: object) -> str:
    return str((await chat(url, prompt, **settings))["choices"][0]["message"]["content"])


async def watched(url: str, prompt: str, **settings: object) -> list[Any]:
    """Return the chunks of a stream that tells of speculation."""
    options = {"include_usage": True, "include_speculation": True}
    asks = {"max_tokens": 48, "stream": True, "stream_options": options, **settings}
    body = {"messages": [{"role": "user", "content": prompt}], **asks}
    async with client_of(url) as client:
        reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n")]
    assert lines[-2:] == ["[DONE]", ""]
    return [json.loads(line) for line in lines[:-2]]


def counted(chunks: list[Any]) -> Counter[str]:
    """Return the tokens by origin, of all chunks of the text."""
    texts = [chunk for chunk in chunks if chunk["choices"]]
    return sum((Counter(c.get("speculation", {}).get("tokens", {})) for c in texts), Counter())


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "temperature 1"])
@pytest.mark.parametrize("prompt", [CODE, "Say ten times: the cat 🐈 sat on the mat."])
@pytest.mark.parametrize("which", ["eager", "bad", ""])
async def test_the_origins_of_a_text_agree_with_its_totals_token_by_token(
    services: Services, which: str, prompt: str, settings: dict[str, object]
) -> None:
    url = services.edge_urls.get(which, services.verifier_url)
    chunks = await watched(url, prompt, logprobs=True, **settings)

    shown = [c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")]
    for chunk in shown:
        agree_token_by_token(chunk)
    origins, last = counted(chunks), chunks[-1]
    assert origins.total() == last["usage"]["completion_tokens"]
    assert origins == last["speculation"]["tokens"]
    accepted = last["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"]
    assert origins.total() - origins["target"] == accepted == last["speculation"]["accepted"]
    alone = await text(services.verifier_url, prompt, max_tokens=48, **settings)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in shown) == alone


def agree_token_by_token(chunk: Any) -> None:  # noqa: ANN401 - JSON
    """Check that the spans of a chunk are those of its tokens, where each has characters."""
    shown = chunk["choices"][0]["delta"]["content"]
    origins = [origin for count, origin in chunk["speculation"]["spans"] for _ in range(count)]
    assert len(origins) == len(shown)
    entries = chunk["choices"][0]["logprobs"]["content"]
    if any(max(entry["bytes"]) >= 128 for entry in entries):
        return
    seen, at = Counter[str](), 0
    for entry in entries:
        (origin,) = set(origins[at : at + len(entry["token"])])
        seen[origin] += 1
        at += len(entry["token"])
    assert at == len(shown)
    assert seen <= Counter(chunk["speculation"]["tokens"])  # a stop token is not seen


async def test_the_events_of_an_answer_add_up_to_it(services: Services) -> None:
    chunks = await watched(services.edge_urls["eager"], CODE, **GREEDY)

    events = [c["speculation"] for c in chunks if not c["choices"]]
    passes = [each for each in events if each["event"] == "pass"]
    totals = events[-1]
    assert sum(each["committed"] for each in passes) == chunks[-1]["usage"]["completion_tokens"]
    assert sum(each["accepted"] for each in passes) == totals["accepted"] > 0
    assert len(passes) == totals["passes"]
    assert totals["bytes_per_token"] > 0
    assert totals["tokens_per_s"] > 0
    assert 0 < totals["cloud_row_ms"] < 10_000
    assert {"chain", "pass", "link", "totals"} == {each["event"] for each in events}


async def test_separate_is_greedy_where_the_target_is_and_tells_what_it_accepted(
    services: Services,
) -> None:
    url = services.edge_urls["separate"]

    chunks = await watched(url, HAIKU, **WARM)

    origins, last = counted(chunks), chunks[-1]
    assert origins.total() == last["usage"]["completion_tokens"]
    assert origins.total() - origins["target"] == last["speculation"]["accepted"] > 0
    alone = await text(services.verifier_url, HAIKU, **GREEDY)
    assert await text(url, HAIKU, **GREEDY) == alone


@pytest.mark.parametrize("settings", [WARM, GREEDY, WARM | {"seed": 99}])  # others are known
async def test_what_is_asked_again_has_the_same_answer_in_no_more_passes(
    services: Services, settings: dict[str, object]
) -> None:
    alone = await text(services.verifier_url, HAIKU, **settings)

    replies = [await chat(services.edge_urls["past"], HAIKU, **settings) for _ in range(2)]

    assert [reply["choices"][0]["message"]["content"] for reply in replies] == [alone, alone]
    first, second = (
        reply["metrics"]["speculative_decoding"]["num_target_passes"] for reply in replies
    )
    assert second <= first  # how many fewer, a busy host decides


async def test_a_connection_that_was_idle_as_long_as_clients_keep_one_still_serves(
    services: Services,
) -> None:
    unhurried = httpx.AsyncHTTPTransport(limits=httpx.Limits(keepalive_expiry=60))
    url = services.edge_urls["eager"]
    async with httpx.AsyncClient(transport=unhurried, base_url=url) as client:
        sockets = []
        for wait_s in (CLIENTS_KEEP_S + 0.5, 0.0):
            stream = (await client.get("/ready")).extensions["network_stream"]
            sockets.append(stream.get_extra_info("socket").getsockname())
            await asyncio.sleep(wait_s)

    assert sockets[0] == sockets[1]
