"""Answers of the fallback, while the service's own engine cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from starlette.responses import Response
from structlog.testing import capture_logs

from gateway.app import create_app
from gateway.endpoints.services import Backend, Forward, Json, OneModel, Services
from gateway.errors import Unavailable
from gateway.hosting.settings import GatewaySettings
from gateway.ports import Facts, GatewayTokenizer
from tests.gateway.scripted import (
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    client_of,
    events_of,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
STREAM = CHAT | {"stream": True}


class Small(ScriptedEngine):
    """The fallback's engine, which has another model."""

    async def facts(self) -> Facts:
        return Facts("small", 64, frozenset({256}), 257, frozenset({"min_tokens"}))


class Fallback:
    name = "draft"
    is_elsewhere = False

    def __init__(self, paths: tuple[str, ...] | None = None) -> None:
        self.paths = paths
        self.needed = True
        self.engine = Small((b"Well", b" then"))
        self.counted = 0

    async def tokenizer(self, _: str) -> GatewayTokenizer:
        return ByteTokenizer()

    async def is_away(self) -> bool:
        return self.needed

    async def can_answer(self, path: str) -> bool:
        return self.paths is None or path in self.paths

    def count_answers(self, count: int) -> None:
        self.counted += count


class Elsewhere(Fallback):
    name = "server"
    is_elsewhere = True


@pytest.fixture
def fallback() -> Fallback:
    return Fallback()


def client(
    engine: ScriptedEngine, *spares: Fallback, proxy: Asked | None = None
) -> httpx.AsyncClient:
    async def source(_: str) -> GatewayTokenizer:
        if engine.down:
            raise engine.down
        return ByteTokenizer()

    models = OneModel(Backend(engine, source, spares=spares, is_away=spares[0].is_away))
    return client_of(create_app(Services(models, GatewaySettings(), proxy=proxy)))


def away() -> ScriptedEngine:
    return ScriptedEngine(down=Unavailable("no verifier answers"))


def said(answer: httpx.Response) -> list[Mapping[str, object]]:
    """Return the bodies of an answer, streamed or not."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return [answer.json()]
    *events, last = events_of(answer.text)
    assert last == "[DONE]"
    return events


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize("needed", [True, False])
async def test_an_answer_says_so_if_it_is_the_fallbacks(
    fallback: Fallback, needed: bool, body: Body
) -> None:
    fallback.needed = needed
    async with client(away() if needed else ScriptedEngine(), fallback) as asked:
        with capture_logs() as logs:
            answer = await asked.post("/v1/chat/completions", json=body)

    name, fingerprint = ("draft", "draft:small") if needed else (None, None)
    assert answer.status_code == 200
    assert answer.headers.get("x-picospec-fallback") == logs[0].get("fallback") == name
    assert {each["model"] for each in said(answer)} == {"small" if needed else MODEL}
    assert {each.get("system_fingerprint") for each in said(answer)} == {fingerprint}
    assert ("Well" in answer.text) == needed
    assert fallback.counted == needed


async def test_an_answer_that_runs_never_goes_on_in_the_fallback(fallback: Fallback) -> None:
    fallback.needed = False
    engine = ScriptedEngine(then=Unavailable("the verifier went away"))

    async def lose() -> None:
        fallback.needed = True
        await asyncio.sleep(0)

    engine.pause = lose
    async with client(engine, fallback) as asked:
        answer = await asked.post("/v1/chat/completions", json=STREAM)

    assert events_of(answer.text)[-1]["error"]["message"] == "the verifier went away"
    assert not fallback.engine.jobs


async def test_models_tokens_and_parameters_are_the_fallbacks_meanwhile(
    fallback: Fallback,
) -> None:
    async with client(away(), fallback) as asked:
        models = await asked.get("/v1/models")
        tokens = await asked.post("/tokenize", json={"model": MODEL, "content": "ab"})
        biased = await asked.post("/v1/chat/completions", json=CHAT | {"logit_bias": {"1": 2}})

    assert (biased.status_code, biased.json()["error"]["param"]) == (400, "logit_bias")
    assert [each["id"] for each in models.json()["data"]] == ["small"]
    assert tokens.json()["tokens"] == [97, 98]
    assert models.headers["x-picospec-fallback"] == "draft"


class Asked:
    """A proxy that keeps what it is asked for. Its verifier opened no sessions of late."""

    models, held_bytes = (), 0

    def __init__(self) -> None:
        self.forwards = list[Forward]()

    def is_without_drafts(self, _: str) -> bool:
        return True

    def fields_of(self, _: bytes) -> Json:
        return {}

    def listed(self, *_: object) -> None:
        return None

    def own_api(self, *_: object) -> Forward:
        raise Unavailable("no verifier answers")

    async def prompt(self, *_: object) -> tuple[int, ...]:
        raise Unavailable("no verifier answers")

    async def answer(self, *asked: object) -> Response:
        self.forwards += [each for each in asked if isinstance(each, Forward)]
        return Response("theirs")


ENDPOINTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"max_tokens": 5, "messages": CHAT["messages"]},
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("order", ["server", "server,draft", "draft", "nobody"])
async def test_the_first_in_the_order_that_can_answers_at_each_endpoint(
    fallback: Fallback, path: str, stream: bool, order: str
) -> None:
    server, proxy = Elsewhere((path,) if "server" in order else ()), Asked()
    spares = [server, fallback] if "draft" in order else [server]
    async with client(away(), *spares, proxy=proxy) as asked:
        answer = await asked.post(path, json={"stream": stream, **ENDPOINTS[path]})

    by = "server" if "server" in order else "draft" if "draft" in order else None
    assert answer.status_code == (200 if by else 503)
    assert answer.headers.get("x-picospec-fallback") == by
    assert [(each.path, each.is_fallback) for each in proxy.forwards] == (
        [(path, True)] if by == "server" else []
    )
    assert ("theirs" in answer.text) == (by == "server")
    assert (server.counted, fallback.counted) == (by == "server", by == "draft")
