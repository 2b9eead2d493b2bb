"""Large bodies of many small values: they are refused, and meanwhile nobody else waits."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.endpoints.bodies import BYTES_PER_TOKEN, MIN_LIMIT_BYTES
from gateway.errors import ApiError, Unavailable
from tests.gateway.scripted import MODEL, ScriptedEngine, client_of, make_app, served
from tests.guards import GUARD_S
from tests.hostile.small_values import CHAT, KINDS, TEXT, body_of

MORE_S = 0.5
"""How much longer than without such a body another client may wait: it is what is promised. It
is the time for which this process computes, so that a busy host does not count."""

CONTEXT_TOKENS = MIN_LIMIT_BYTES // BYTES_PER_TOKEN
JSON = {"content-type": "application/json"}
LONG = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a"}]}


class Others:
    """Another client, which reads a stream and asks for /health, again and again."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[float] = asyncio.Queue()
        self.answers: asyncio.Queue[float] = asyncio.Queue()
        """For how long this process computed before each of them came, in seconds."""

    async def read(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", CHAT, json=LONG) as answer:
            last = time.process_time()
            async for _ in answer.aiter_lines():
                now = time.process_time()
                self.pieces.put_nowait(now - last)
                last = now

    async def ask(self, client: httpx.AsyncClient) -> None:
        while True:
            begun = time.process_time()
            assert (await client.get("/health")).status_code == 200
            self.answers.put_nowait(time.process_time() - begun)

    async def longest_s(self) -> float:
        """Return the longest wait since this was called last."""
        longest_s = 0.0
        for queue in (self.pieces, self.answers):
            waits = [queue.get_nowait() for _ in range(queue.qsize())]
            longest_s = max(longest_s, *waits, await queue.get())  # one that goes on, too
        return longest_s


@asynccontextmanager
async def others(client: httpx.AsyncClient) -> AsyncIterator[Others]:
    other = Others()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work(client)) for work in (other.read, other.ask)]
        yield other
        for task in running:
            task.cancel()


@pytest.fixture
def no_others_objects() -> Iterator[None]:
    """Leave what other tests have made to no collection of garbage while this one measures: to
    look through it takes half a second of computing."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.long
@pytest.mark.usefixtures("no_others_objects")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_of_any_kind_delays_nobody_else(kind: str) -> None:
    bodies = [body_of(kind, admitted=admitted) for admitted in (False, True)]
    engine = ScriptedEngine(lambda job: [b"a"] * job.max_tokens, context_tokens=CONTEXT_TOKENS)
    engine.features = frozenset({"logit_bias", "prediction"})
    engine.pause = lambda: asyncio.sleep(0.002)
    async with (
        served(make_app(engine)) as url,
        httpx.AsyncClient(base_url=url, timeout=GUARD_S, trust_env=False) as client,
        others(client) as other,
    ):
        await other.longest_s()
        await asyncio.gather(*(client.get("/version") for _ in range(100)))
        undisturbed_s = await other.longest_s()

        answers = [
            await client.post(KINDS[kind][0], content=body, headers=JSON) for body in bodies
        ]
        disturbed_s = await other.longest_s()

    assert {answer.status_code for answer in answers} <= {200, 400}
    assert disturbed_s <= undisturbed_s + MORE_S


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("context_tokens", "own", "limit"),
    [
        (64, None, MIN_LIMIT_BYTES),
        (1 << 16, None, BYTES_PER_TOKEN << 16),
        (1 << 16, 5000, 5000),
        (64, 1 << 22, MIN_LIMIT_BYTES),
    ],
)
async def test_the_limit_of_a_body_comes_from_the_context(
    path: str, context_tokens: int, own: int | None, limit: int
) -> None:
    app = make_app(ScriptedEngine(context_tokens=context_tokens), body_limit_bytes=own)
    async with client_of(app) as client:
        answers = [await client.post(path, content=b" " * size) for size in (limit, limit + 1)]

    assert [answer.status_code for answer in answers] == [400, 413]


@pytest.mark.parametrize("down", [None, Unavailable("there is no verifier")])
async def test_the_engine_is_asked_about_no_body_that_fits_in_any_context(
    down: ApiError | None,
) -> None:
    class EndpointRequest(ScriptedEngine):
        asked = 0

        async def facts(self) -> Any:  # noqa: ANN401
            self.asked += 1
            return await super().facts()

    engine = EndpointRequest(down=down)
    bodies = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": []}]
    async with client_of(make_app(engine)) as client:
        answers = [await client.post(CHAT, json=body) for body in bodies]

    assert [answer.status_code for answer in answers] == [503 if down else 200, 400]
    assert engine.asked == 1
