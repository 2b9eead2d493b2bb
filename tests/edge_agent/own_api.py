"""A verifier's own API of a few fields, what it answers, and an edge before it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.edge_agent.proxying import OwnApi, Upstream, proxying, serving

CHATS, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = {"role": "user", "content": "Hi"}
ASK = {"messages": [USER], "max_tokens": 3}
USUAL = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "n",
    "temperature",
]
API = {
    CHATS: [*USUAL, "messages", "bad_words", "echo", "tools", "logprobs", "top_logprobs"],
    COMPLETIONS: [*USUAL, "prompt", "echo", "logprobs", "use_beam_search"],
    RESPONSES: ["model", "input", "store", "include_reasoning", "temperature"],
    "/v1/messages": ["model", "messages", "max_tokens", "system", "vllm_xargs"],
}
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
SAID = json.dumps({"id": "theirs", "choices": [{"text": "Ho"}], "usage": USAGE}).encode()


@asynccontextmanager
async def before(api: OwnApi, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an edge before a verifier with this API."""
    async with (
        serving(api.app()) as url,
        proxying(Upstream(), verifier=url, proxy={"url": None}, **settings) as client,
    ):
        yield client
