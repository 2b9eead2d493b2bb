"""What is no request, or no setting, gets the defined error; the engine never gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    assert engine.jobs == []


NAN = b'{"model": "bytes-1", "messages": [{"role": "user", "content": ""}], "top_p": NaN}'


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "\xff"}', b"[" * 500, b"[1]", NAN])
async def test_a_body_that_is_no_json_object_is_a_400(
    engine: ScriptedEngine, body: bytes
) -> None:
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", content=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    syntax = error["message"] == "the body is not valid JSON"
    assert syntax is (error["code"] == "invalid_json") is (body not in (b"[1]", NAN))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("own", "limit"), [(1024, 1024), (None, 2**20)])
async def test_a_body_over_the_limit_is_a_413_announced_or_not(
    engine: ScriptedEngine, chunked: bool, own: int | None, limit: int
) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b" " * 512
        yield b" " * (size - 512)

    answers = []
    async with client_of(make_app(engine, body_limit_bytes=own)) as client:
        for size in (limit, limit + 1):
            content = chunks(size) if chunked else b" " * size
            answers.append(await client.post("/v1/chat/completions", content=content))

    assert [answer.status_code for answer in answers] == [400, 413]
    assert answers[1].json()["error"]["code"] == "request_too_large"


async def test_the_message_says_what_would_fit(engine: ScriptedEngine) -> None:
    long = await ask({"prompt": [1] * CONTEXT_TOKENS}, engine)
    token = await ask({"prompt": [257]}, engine)

    assert long.json()["error"]["message"] == "the context has 64 tokens, the prompt takes 64"
    assert token.json()["error"]["message"] == "token ids must be from 0 to 256"


async def test_the_limit_of_choices_is_the_services() -> None:
    answers = [await ask(CHAT | {"n": n}, max_choices=3) for n in (3, 4)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json()["error"]["param"] == "n"


@pytest.mark.parametrize(
    "settings", [{"body_limit_bytes": 1023}, {"max_choices": 129}, {"keep_alive_s": 0}]
)
def test_settings_beyond_their_range_are_rejected(settings: Body) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_app(ScriptedEngine(), **settings)


async def test_unknown_paths_and_methods_are_errors_in_openais_shape(
    engine: ScriptedEngine,
) -> None:
    async with client_of(make_app(engine)) as client:
        nowhere = await client.get("/v1/nowhere")
        wrong = await client.get("/v1/chat/completions")

    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_without_a_verifier_everything_that_needs_it_is_a_503_and_health_is_not() -> None:
    engine = ScriptedEngine(down=Unavailable("no verifier at 127.0.0.1:9000"))
    async with client_of(make_app(engine)) as client:
        answers = [await client.get(path) for path in ("/ready", "/v1/models")]
        answers.append(await client.post("/v1/chat/completions", json=CHAT))
        health = await client.get("/health")

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert health.status_code == 200
    assert answers[0].json()["error"]["code"] == "verifier_unavailable"
