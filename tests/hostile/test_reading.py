"""Long prompts of one tenant: others are read meanwhile, and what is refused has a price."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from gateway import prompt_reader
from gateway.prompt_reader import BYTES_PER_TOKEN, MAX_RUNNING
from tests.gateway.scripted import (
    ANN,
    BEN,
    CONTEXT_TOKENS,
    ByteTokenizer,
    Headers,
    ScriptedEngine,
    client_of,
    keys_toml,
    make_app,
)

CHAT = "/v1/chat/completions"
FITS = CONTEXT_TOKENS * BYTES_PER_TOKEN
LONG = "a" * (FITS + 1)


@dataclass(eq=False)
class Slow(ByteTokenizer):
    """Reads "slow" for as long as it is not let go, in a thread of its own."""

    let_go: threading.Event = field(default_factory=threading.Event)
    read: list[str] = field(default_factory=list)
    reading: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        self.read.append(text)
        if text == "slow":
            assert threading.current_thread() is not threading.main_thread()
            self.reading.release()
            self.let_go.wait(60.0)
        return super().encode(text, special=special, begin=begin)


@pytest.fixture
def tokenizer() -> Iterator[Slow]:
    tokenizer = Slow()
    yield tokenizer
    tokenizer.let_go.set()


@pytest.fixture
async def client(tokenizer: Slow, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = keys_toml(tmp_path / "keys.toml", "ann", "ben")
    app = make_app(ScriptedEngine(), tokenizer=tokenizer, keys_file=keys)
    async with client_of(app) as client:
        yield client


async def complete(client: httpx.AsyncClient, who: Headers, prompt: str) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": prompt}, headers=who)


async def tokens_of_ann(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics", headers=BEN)).text
    lines = (line for line in text.splitlines() if line.startswith("picospec:tenant_tokens_t"))
    return next((float(line.split()[-1]) for line in lines if '"ann"' in line), 0.0)


async def test_a_short_prompt_is_read_beside_all_long_ones_of_another_tenant(
    client: httpx.AsyncClient, tokenizer: Slow
) -> None:
    slow = [asyncio.create_task(complete(client, ANN, "slow")) for _ in range(9)]
    for _ in range(MAX_RUNNING - 1):
        await asyncio.to_thread(tokenizer.reading.acquire)

    short = await complete(client, BEN, "short")
    still_read = [task.done() for task in slow]
    tokenizer.let_go.set()

    assert (short.status_code, any(still_read)) == (200, False)
    assert {answer.status_code for answer in await asyncio.gather(*slow)} == {200}


async def test_more_prompts_than_may_wait_get_429(
    tokenizer: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reader, "MAX_WAITING", 2)
    async with client_of(make_app(ScriptedEngine(), tokenizer=tokenizer)) as client:
        slow = [asyncio.create_task(complete(client, {}, "slow")) for _ in range(9)]
        await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        tokenizer.let_go.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*slow)]

    assert sorted(statuses) == [200] * 4 + [429] * 5


@pytest.mark.system
async def test_the_wait_for_a_prompt_ends(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reader, "READ_TIMEOUT_S", 0.05)

    answer = await complete(client, ANN, "slow")

    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


TOO_LONG: dict[str, tuple[str, dict[str, object], str]] = {
    "a prompt": ("/v1/completions", {"prompt": LONG}, "prompt"),
    "two prompts": ("/v1/completions", {"prompt": ["a", LONG]}, "prompt"),
    "two halves": ("/v1/completions", {"prompt": "a" * FITS, "suffix": "a"}, "prompt"),
    "characters": ("/v1/completions", {"prompt": "\u4e2d" * (FITS // 3 + 1)}, "prompt"),
    "a chat": (CHAT, {"messages": said(LONG)}, "messages"),
    "a chat's whole": (CHAT, {"messages": said(LONG[:-3])}, "messages"),
    "content": ("/tokenize", {"content": LONG}, "content"),
    "text": ("/tokenize", {"prompt": LONG}, "prompt"),
    "messages": ("/tokenize", {"messages": said(LONG)}, "messages"),
}


@pytest.mark.parametrize("name", TOO_LONG)
async def test_a_text_that_cannot_fit_is_refused_by_its_bytes(
    name: str, client: httpx.AsyncClient, tokenizer: Slow
) -> None:
    path, body, param = TOO_LONG[name]

    answer = await client.post(path, json=body, headers=ANN)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["code"] == "context_length_exceeded"
    assert all(len(text) <= FITS for text in tokenizer.read)
    charged = CONTEXT_TOKENS + (name == "two prompts")
    assert await tokens_of_ann(client) == (charged if "completions" in path else 0)


class Failing(ByteTokenizer):
    """No process for the template can be started, and the text is too much for it."""

    def chat(self, *_: object, **__: object) -> list[int]:
        raise OSError("Too many open files")

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        if text == "a":
            raise ValueError("the tokenizer fails")
        return super().encode(text, special=special, begin=begin)


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_tokenizer_that_fails_is_an_error_that_says_so(path: str) -> None:
    async with client_of(make_app(ScriptedEngine(), tokenizer=Failing())) as client:
        chat = await client.post(path, json={"messages": said("a")})
        text = await client.post(path.replace("chat/", ""), json={"prompt": "a"})

    assert chat.status_code == 503
    assert (text.status_code, text.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("size", [CONTEXT_TOKENS, CONTEXT_TOKENS + 1, FITS])
async def test_tokens_of_a_refused_prompt_are_charged(
    size: int, client: httpx.AsyncClient
) -> None:
    answer = await complete(client, ANN, "a" * size)

    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert await tokens_of_ann(client) == size


async def test_tokens_of_an_answered_prompt_are_charged_once(client: httpx.AsyncClient) -> None:
    answer = await complete(client, ANN, "a" * 9)

    assert await tokens_of_ann(client) == answer.json()["usage"]["total_tokens"]
    assert answer.json()["usage"]["prompt_tokens"] == 9
