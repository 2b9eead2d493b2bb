"""Long prompts and other long work hold up nobody's prompt; a refused prompt has a price."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft import loading
from edge_agent.draft.late import Drafts
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.link.names import Name
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import load
from gateway import prompt_reader
from gateway.errors import ApiError
from gateway.prompt_reader import BYTES_PER_TOKEN, MAX_RUNNING
from gateway.turns import Turns
from local_models.compiler import MAX_WAITING, WAITING, GrammarCompiler
from local_models.confined import Worker
from local_models.errors import ModelError
from local_models.store import open_store
from tests.edge_agent.fakes import FACTS, FakeVerifier
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
from tests.guards import GUARD_S
from tests.local_models.grammars.small import TOKENIZER

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


class Blocked:
    """Calls of it end when the test does."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> Any:  # noqa: ANN401 - of many functions
        self.calls += 1
        self.over.wait(GUARD_S)
        raise OSError("it is over")


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    blocked.over.set()


async def prompts_are_read_beside(blocked: Blocked, *work: Any, calls: int) -> None:  # noqa: ANN401
    """See that the loop's only shared thread works while all this work is blocked."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    tasks = [asyncio.ensure_future(each) for each in work]
    async with asyncio.timeout(GUARD_S):
        while blocked.calls < calls:
            await asyncio.to_thread(int)
        await asyncio.to_thread(int)
    blocked.over.set()
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError, OSError, ApiError, ModelError):
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_six_pulls(
    blocked: Blocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "pull_if_missing", blocked)
    drafts = Drafts(load(None, {}, {}), open_store({"PICOSPEC_CACHE": str(tmp_path)}))
    pulls = (drafts.load(f"m{number}") for number in range(6))

    await prompts_are_read_beside(blocked, *pulls, calls=6)


async def test_two_names_at_a_silent_resolver_with_one_look_up_each(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    for name in ("LOOK_S", "LOOK_AGAIN_S"):
        monkeypatch.setattr(f"edge_agent.link.names.{name}", 0.01)
    fake: Any = FakeVerifier()
    metrics = EdgeMetrics(CollectorRegistry())
    names = [Name(f"http://n{n}", lambda *_: Verifier(fake, metrics)) for n in range(2)]
    follow = [name.follow(lambda: None) for name in names]

    await prompts_are_read_beside(blocked, *follow, asyncio.sleep(0.1), calls=2)
    assert blocked.calls == 2


async def test_tokenizers_that_are_tried(blocked: Blocked) -> None:
    async def facts(_: str = "") -> object:
        return FACTS

    cache: Any = SimpleNamespace(find=blocked)
    verifiers: Any = SimpleNamespace(facts=facts)
    sources = [TargetTokenizer(verifiers, cache, None) for _ in range(6)]

    await prompts_are_read_beside(blocked, *(source() for source in sources), calls=6)


@pytest.mark.system
async def test_grammars_that_are_tried(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "ask", blocked)
    compiler = GrammarCompiler(TOKENIZER, Turns(1, MAX_WAITING, WAITING).take)
    work = compiler.check(b'{"choice": ["word"]}', "ann")

    await prompts_are_read_beside(blocked, work, calls=1)
