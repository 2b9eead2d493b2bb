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
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.rendering import PATH, fields_of
from gateway.errors import Unsupported
from tests.edge_agent.proxying import (
    API,
    ASK,
    CHATS,
    SAID,
    OwnApi,
    ask,
    before,
    saying,
)
from tests.gateway.scripted import ByteTokenizer
from tests.guards import GUARD_S
from tests.verifier.fake_target import STREAMS, V

TOOLS = [{"type": "function", "function": {"name": "f"}}]
IDS = [STREAMS, 5, 6]
UNLISTED = {"tools": TOOLS, "stop": ["@"]}
FORCED: list[dict[str, Any]] = [
    {"tool_choice": "none"},
    {"tool_choice": "required"},
    {"parallel_tool_calls": False},
    {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
    {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
]


@pytest.fixture(autouse=True)
def templateless(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tokenizer(*_: object) -> ByteTokenizer:
        return ByteTokenizer()

    monkeypatch.setattr(TargetTokenizer, "__call__", tokenizer)


def making(content: bytes, status: int = 200, *listed: str) -> OwnApi:
    """Return the API of a verifier that answers so if it is asked for a prompt. listed: the
    fields of a chat that it lists there."""
    prompt, chat = saying(content, status), saying(SAID)

    async def answer(request: Request) -> Response:
        return await (prompt if request.scope["path"] == PATH else chat)(request)

    return OwnApi({**API, CHATS: [*API[CHATS], "stop"], PATH: [*listed]}, answer)


async def test_a_chat_is_drafted_on_the_tokens_that_the_verifiers_server_makes_of_it() -> None:
    api = making(json.dumps({"token_ids": IDS}).encode(), 200, "tools", "stop")
    wanted = {"seed": 1, "reasoning": {"effort": "low"}, "tools": TOOLS, "stop": ["@"]}
    answer = await ask(api, CHATS, {**ASK, **wanted})

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
        "tools": TOOLS,
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
    answer = await ask(making(content), CHATS, ASK)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "bad_prompt")
    assert error["message"].startswith("the prompt from http://127.0.0.1")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, ASK) for status in (400, 404, 429, 503)),
        *((200, {**ASK, name: value}) for name, value in UNLISTED.items()),
    ],
)
async def test_a_chat_without_such_a_prompt_is_answered_by_the_verifiers_own_api(
    status: int, body: dict[str, Any]
) -> None:
    answer = await ask(making(b"{}", status), CHATS, body)

    assert (answer.status_code, answer.content) == (200, SAID), answer.text
    assert answer.headers["x-picospec-relayed-for"] == "messages"


@pytest.mark.parametrize("forced", FORCED)
def test_no_prompt_is_made_of_a_chat_whose_calls_are_not_free(forced: dict[str, Any]) -> None:
    fields = {**ASK, "tools": TOOLS, **forced}

    with pytest.raises(Unsupported, match="forced calls"):
        fields_of(ChatRequest.model_validate(fields), fields, ["tools"])


async def test_a_prompt_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "WITHIN_S", 0.0)
    answer = await ask(making(b'{"token_ids":[4]}'), CHATS, ASK)

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
