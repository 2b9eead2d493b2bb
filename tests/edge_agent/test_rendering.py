"""A verifier whose server makes the prompts: an edge drafts on them, or that server answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from edge_agent import rendering
from edge_agent.draft.loading import TargetTokenizer
from gateway.endpoints.rendering import PATH
from tests.edge_agent.proxying import OwnApi, saying
from tests.edge_agent.test_own_api import API, ASK, CHATS, SAID, before
from tests.gateway.scripted import ByteTokenizer
from tests.guards import GUARD_S
from tests.verifier.fake_target import STREAMS, V

TOOLS = [{"type": "function", "function": {"name": "f"}}]
IDS = [STREAMS, 5, 6]


@pytest.fixture(autouse=True)
def templateless(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tokenizer(*_: object) -> ByteTokenizer:
        return ByteTokenizer()

    monkeypatch.setattr(TargetTokenizer, "__call__", tokenizer)


def making(content: bytes, status: int = 200) -> OwnApi:
    """Return the API of a verifier that answers so if it is asked for a prompt."""
    prompt, chat = saying(content, status), saying(SAID)

    async def answer(request: Request) -> Response:
        return await (prompt if request.scope["path"] == PATH else chat)(request)

    return OwnApi({**API, PATH: []}, answer)


async def test_a_chat_is_drafted_on_the_tokens_that_the_verifiers_server_makes_of_it() -> None:
    api = making(json.dumps({"token_ids": IDS}).encode())
    async with before(api) as client:
        answer = await client.post(CHATS, json={**ASK, "seed": 1, "reasoning_effort": "low"})

    assert answer.status_code == 200, answer.text
    assert "x-picospec-relayed" not in answer.headers
    assert answer.json()["usage"] == {
        **answer.json()["usage"], "prompt_tokens": len(IDS), "completion_tokens": 3,
    }  # fmt: skip
    (asked,) = api.asked
    assert asked.pop("chat_template_kwargs")["reasoning_effort"] == "low"
    assert asked == {
        "model": "fake",
        "messages": ASK["messages"],
        "reasoning_effort": "low",
        "continue_final_message": False,
        "add_generation_prompt": True,
    }


@pytest.mark.parametrize(
    "content",
    [
        b'{"token_ids":[]}',
        b'{"token_ids":[-1]}',
        b'{"token_ids":[%d]}' % V,
        b'{"token_ids":[1e999]}',
        b'{"token_ids":%b' % (b"[" * 1500),
        b'{"token_ids":[%b1]}' % (b"1," * 100_000),
        b"\xff",
        b"{}",
    ],
)
async def test_what_is_no_prompt_is_an_error_that_names_the_verifier(content: bytes) -> None:
    async with before(making(content)) as client:
        answer = await client.post(CHATS, json=ASK)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "bad_prompt")
    assert error["message"].startswith("the prompt from http://127.0.0.1")


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, ASK), (404, ASK), (429, ASK), (503, ASK), (200, {**ASK, "tools": TOOLS})],
)
async def test_a_chat_without_such_a_prompt_is_answered_by_the_verifiers_own_api(
    status: int, body: dict[str, Any]
) -> None:
    async with before(making(b"{}", status)) as client:
        answer = await client.post(CHATS, json=body)

    assert (answer.status_code, answer.content) == (200, SAID), answer.text
    assert answer.headers["x-picospec-relayed-for"] == "messages"


async def test_a_prompt_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "WITHIN_S", 0.0)
    async with before(making(b'{"token_ids":[4]}')) as client:
        answer = await client.post(CHATS, json=ASK)

    assert (answer.status_code, answer.content) == (200, SAID), answer.text


async def test_a_client_that_leaves_ends_the_making_of_its_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "WITHIN_S", 2 * GUARD_S)
    reached, left = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        reached.set()
        message = await request.receive()  # the body has been read
        assert message["type"] == "http.disconnect"
        left.set()
        return Response()

    async with before(OwnApi({**API, PATH: []}, answer)) as client:
        asking = asyncio.create_task(client.post(CHATS, json=ASK))
        await reached.wait()
        asking.cancel()
        await left.wait()
