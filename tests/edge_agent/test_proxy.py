"""What an edge does not speed up is answered by another service, as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from edge_agent.forwarding import MEDIA_BYTES, listed
from gateway.background_work import running_alongside
from gateway.drain import Drain
from gateway.keys import KeyLimits, add_key
from tests.edge_agent.proxying import (
    EMBEDDED,
    EMBEDDINGS,
    JSON,
    MODEL,
    NOWHERE,
    SEEING,
    Answering,
    Upstream,
    embed,
    proxying,
    saying,
    serving,
    streaming,
)
from tests.gateway.scripted import served
from tests.guards import GUARD_S
from tests.memory import resident_bytes
from tests.verifier.fake_target import FakeTarget
from verifier.app import build as build_verifier
from verifier.settings import load as load_verifier

RECORDING = "/v1/audio/transcriptions"
RAW = {"content-type": "application/octet-stream"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PIECES = 1600
PIECE = bytes(1 << 16)


async def test_an_answer_comes_back_and_says_who_gave_it() -> None:
    upstream = Upstream()

    async with proxying(upstream) as client:
        with capture_logs() as logs:
            answer = await client.post(f"{EMBEDDINGS}?dimensions=3", json={"input": "Hi"})

    assert answer.json() == {**EMBEDDED, "got": len(answer.request.content)}
    assert answer.headers["x-picospec-relayed"] == "upstream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    (line,) = [line for line in logs if line["event"] == "request"]
    assert (line["proxied"], line["prompt_tokens"], line["status"]) == ("upstream", 7, 200)
    (asked,) = upstream.asked
    assert (asked["path"], asked["query_string"]) == (EMBEDDINGS, b"dimensions=3")


async def test_the_upstream_gets_its_own_key_and_none_of_the_clients_headers() -> None:
    names = ("PICOSPEC_API_KEYS", "PICOSPEC_VERIFIER_KEY", "PICOSPEC_PROXY_KEY")
    environ = dict(zip(names, ("clients", "edges", "upstreams"), strict=True))
    upstream = Upstream()
    headers = {"authorization": "Bearer clients", "cookie": "a=b", "x-own": "c"}

    async with proxying(upstream, environ=environ) as client:
        stranger = await client.post(EMBEDDINGS, json={})
        known = await client.post(EMBEDDINGS, json={}, headers=headers)

    assert (stranger.status_code, known.status_code) == (401, 200)
    (got,) = [dict(scope["headers"]) for scope in upstream.asked]
    assert got[b"authorization"] == b"Bearer upstreams"
    assert not got.keys() & {b"cookie", b"x-own", b"x-api-key"}


async def test_a_large_body_and_a_large_answer_go_through_piece_by_piece() -> None:
    async def body(pieces: int) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield PIECE

    upstream, most = Upstream(), 0

    async def watch(before: int) -> None:
        nonlocal most
        while True:
            most = max(most, resident_bytes() - before)
            await asyncio.sleep(0.005)

    async with proxying(upstream) as client:
        await client.post(RECORDING, content=body(16), headers=RAW)
        async with running_alongside(watch(resident_bytes())):
            up = await client.post(RECORDING, content=body(PIECES), headers=RAW)
            upstream.answer = streaming("audio/mpeg", body(PIECES))
            async with client.stream("POST", "/v1/audio/speech", json={}) as down:
                came = sum([len(piece) async for piece in down.aiter_bytes()])

    assert up.json()["got"] == came == PIECES * len(PIECE)
    assert most < 32 << 20


async def test_events_come_when_they_are_made() -> None:
    seen = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await seen.wait()
        yield b"data: 2\n\n"

    async with (
        proxying(Upstream(streaming("text/event-stream", events()))) as client,
        client.stream("POST", "/v1/audio/speech", json={}) as answer,
    ):
        pieces = answer.aiter_bytes()
        first = await anext(pieces)
        seen.set()
        rest = b"".join([piece async for piece in pieces])

    assert (first, rest) == (b"data: 1\n\n", b"data: 2\n\n")


async def test_an_answer_without_counts_is_charged_by_events_and_by_the_requests_text() -> None:
    upstream = Upstream(saying(b"data: 1\n\ndata: 2\n\n", kind="text/event-stream"))

    async with proxying(upstream) as client:
        with capture_logs() as logs:
            await client.post("/v1/audio/speech", json={"input": "a" * 100})
            await client.post(RECORDING, content=bytes(400), headers=RAW)

    lines = [line for line in logs if line["event"] == "request"]
    counted = [(line["prompt_tokens"], line["completion_tokens"]) for line in lines]
    assert counted == [(28, 2), (0, 2)]


async def test_a_client_that_leaves_ends_the_request_to_the_upstream() -> None:
    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield PIECE
                await asyncio.sleep(0.01)
        finally:
            upstream.left.set()

    async def until_left() -> AsyncIterator[bytes]:
        yield PIECE
        await asyncio.Event().wait()

    upstream = Upstream(streaming("audio/mpeg", endless()))
    async with asyncio.timeout(GUARD_S), proxying(upstream) as client:
        async with client.stream("POST", "/v1/audio/speech", json={}) as answer:
            await anext(answer.aiter_bytes())
        await upstream.left.wait()

        upstream.answer, upstream.left = embed, asyncio.Event()
        upstream.reached.clear()
        sending = asyncio.create_task(
            client.post(EMBEDDINGS, content=until_left(), headers=RAW)
        )
        await upstream.reached.wait()
        sending.cancel()
        await upstream.left.wait()


async def test_an_answer_that_is_cut_is_never_taken_for_a_whole_one() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b'{"data": ['
        raise ConnectionError

    upstream = Upstream()
    async with proxying(upstream) as client:
        upstream.answer = streaming("application/json", cut())
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(EMBEDDINGS, json={})

        upstream.answer = streaming("text/event-stream", cut())
        events = await client.post(EMBEDDINGS, json={})

    broken, error = events.text.removesuffix("\n\n").split("\n\n")
    assert broken == '{"data": ['
    assert error.startswith("data: ")
    assert '"code":"upstream_unavailable"' in error


async def test_the_limits_of_keys_hold() -> None:
    limits = {"requests_a_minute": 1, "tokens_a_minute": 1000}
    async with proxying(Upstream(), key_limits=limits) as client:
        statuses = [(await client.post(EMBEDDINGS, json={})).status_code for _ in range(2)]
        tokens = (await client.get("/metrics")).text

    assert statuses == [200, 429]
    assert 'picospec:tenant_tokens_total{tenant="anonymous"} 7.0' in tokens


async def test_a_key_of_single_models_reaches_no_path_that_may_name_any(tmp_path: Path) -> None:
    file, upstream = tmp_path / "keys.toml", Upstream()
    key = add_key(file, "ann", KeyLimits(), models=(MODEL,))

    async with proxying(upstream, keys_file=str(file)) as client:
        given = {"authorization": f"Bearer {key}"}
        answer = await client.post(EMBEDDINGS, json={"input": "Hi"}, headers=given)

    assert (answer.status_code, upstream.asked) == (404, [])


async def test_a_drain_waits_for_an_answer_of_the_upstream_and_lets_none_begin() -> None:
    ends, drain = asyncio.Event(), Drain()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"on"
        await ends.wait()
        yield b" and on"

    upstream = Upstream(streaming("text/plain", pieces()))
    async with (
        proxying(upstream, drain=drain) as client,
        client.stream("POST", EMBEDDINGS, json={"input": "Hi"}) as answer,
    ):
        coming = answer.aiter_bytes()
        begun = await anext(coming)
        drain.begin(GUARD_S)
        is_over = drain.over.is_set()
        refused = await client.post(EMBEDDINGS, json={})
        ends.set()
        rest = b"".join([piece async for piece in coming])

    assert (begun, is_over, rest) == (b"on", False, b" and on")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


async def test_its_body_has_a_limit_of_its_own() -> None:
    limits: Any = {"body_limit_bytes": 1024, "proxy": {"body_limit_bytes": 4096}}
    async with proxying(Upstream(), **limits) as client:
        sizes = [(EMBEDDINGS, 4096), (EMBEDDINGS, 4097), ("/tokenize", 1025)]
        found = [await client.post(p, content=bytes(n), headers=RAW) for p, n in sizes]

        async def unannounced() -> AsyncIterator[bytes]:
            yield bytes(5000)

        later = await client.post(EMBEDDINGS, content=unannounced(), headers=RAW)

    assert [answer.status_code for answer in (*found, later)] == [200, 413, 413, 413]


async def test_an_upstream_that_does_not_take_a_body_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_agent.proxy.HEAD_S", 0.3)

    async def never(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    async with proxying(Upstream(never)) as client:
        answer = await client.post(EMBEDDINGS, json={})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "upstream_unavailable")
    assert error["message"] == "the upstream takes too long"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completions", "/api/chat"])
async def test_a_model_of_the_upstream_is_asked_there(path: str) -> None:
    upstream = Upstream()
    async with proxying(upstream, proxy={"models": [MODEL]}) as client:
        answer = await client.post(path, json=CHAT)
        twice = b'{"model":"costly","model":"%b","messages":[]}' % MODEL.encode()
        again = await client.post(path, content=twice, headers={"content-type": JSON})
        other = await client.post(path, json={**CHAT, "prompt": "Hi", "model": "another"})

    assert answer.headers["x-picospec-relayed"] == "upstream"
    assert [scope["path"] for scope in upstream.asked] == [path, path]
    assert again.json()["got"] == len(b'{"model":"%b","messages":[]}' % MODEL.encode())
    assert other.status_code == 503  # it would be the verifier's, which is away
    assert "x-picospec-relayed" not in other.headers


async def test_without_an_upstream_the_verifier_is_asked() -> None:
    verifier = build_verifier(load_verifier(None, {}, {}), lambda _: FakeTarget())
    upstream = Upstream()
    async with (
        serving(verifier) as url,
        proxying(upstream, verifier=url, proxy={"models": [MODEL]}) as client,
        proxying(upstream, verifier=url, proxy={"url": None}) as alone,
    ):
        seen = await client.post("/v1/chat/completions", json=SEEING)
        embedded = await alone.post(EMBEDDINGS, json={})
        listed = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})

    assert [each["id"] for each in listed.json()["data"]][-1] == MODEL
    assert (seen.status_code, "x-picospec-relayed" in seen.headers) == (400, False)
    assert seen.json()["error"]["param"] == "messages.0.content.1.type"
    assert (embedded.status_code, embedded.headers["x-picospec-relayed"]) == (404, "verifier")
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (saying(b'{"error": {"message": "no", "code": 400}}', 400), 400, "invalid_value"),
        (saying(b'{"detail": "no"}', 422), 400, "invalid_value"),
        (saying(b"{}", 404), 404, "not_found"),
        (saying(b"{}", 401), 500, "upstream_unauthorized"),
        (saying(b"{}", 429, retry_after="7"), 429, "overloaded"),
        (saying(b"{}", 502), 503, "upstream_unavailable"),
        (saying(b"", 302, location=f"{NOWHERE}/x"), 500, "internal_error"),
        (saying(b"", 204), 500, "internal_error"),
    ],
)
async def test_an_error_of_the_upstream_is_told_as_one_of_ours(
    said: Answering, status: int, code: str
) -> None:
    async with proxying(Upstream(said)) as client:
        answer = await client.post(EMBEDDINGS, json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-picospec-relayed"] == "upstream"


# A look into a body says whether it is for a model of the upstream, whatever its endpoint.


def part(kind: str) -> dict[str, str]:
    return {"type": kind}


@pytest.mark.parametrize(
    ("body", "has_media"),
    [
        ({"messages": [{"content": [part("text"), part("input_audio")]}]}, True),
        ({"messages": [{"content": [{"content": [part("image")]}]}]}, True),  # a tool's result
        ({"input": [{"content": [part("input_image")]}]}, True),
        ({"input": [part("input_file")]}, True),
        ({"messages": [{"content": 'the text "image_url"'}]}, False),
        ({"messages": [{"content": [part("text")]}], "tools": [part("image_url")]}, False),
        ({"messages": {"content": part("image")}}, False),
        ({"messages": [[part("image_url")]]}, False),
        ({"model": "another"}, None),
        ({"model": [MODEL]}, None),
        ({"model": None}, None),
        ({"n": 0}, None),
    ],
)
def test_a_listed_model_is_seen_in_any_endpoints_body(
    body: dict[str, object], has_media: bool | None
) -> None:
    forward = listed(EMBEDDINGS, json.dumps({"model": MODEL, **body}).encode(), [MODEL])

    most = forward and forward.most_charged_bytes
    assert (forward and most == MEDIA_BYTES) == has_media


NESTED = b'{"content": [' * 400 + b"]}" * 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 10**5, b"\xff", b'{"messages": [{"image":}]}', b'{"messages": [%b]}' % NESTED],
)
def test_a_body_that_is_wrong_goes_to_its_endpoint(body: bytes) -> None:
    asked = b'{"model": "%b", %b' % (MODEL.encode(), body[1:])
    assert listed(EMBEDDINGS, asked, [MODEL]) is None
    assert listed(EMBEDDINGS, body, [MODEL]) is None


ANSWERS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"max_tokens": 5, "messages": CHAT["messages"]},
}


@pytest.mark.parametrize("path", ANSWERS)
async def test_another_server_answers_while_no_verifier_can_be_reached(path: str) -> None:
    bodies = list[dict[str, Any]]()

    async def answer(request: Request) -> Response:
        bodies.append(json.loads(await request.body() or b"{}"))
        if bodies[-1].get("stream"):
            return Response("data: [DONE]\n\n", 200, {}, "text/event-stream")
        return Response('{"model": "theirs", "usage": {}}', 200, {}, JSON)

    upstream = Upstream(answer)
    async with served(upstream) as url:  # type: ignore[arg-type]  # it is an ASGI app
        own = {"url": f"{url}/v1", "model": "theirs"}
        key = {"PICOSPEC_FALLBACK_KEY": "secret"}
        async with proxying(
            Upstream(), environ=key, fallback="server", fallback_server=own
        ) as client:
            asked = ANSWERS[path] | {"model": "absent"}
            whole = await client.post(path, json=asked)
            options = {"include_speculation": True} if "completions" in path else None
            streamed = await client.post(
                path, json=asked | {"stream": True, "stream_options": options}
            )
            listed = (await client.get("/v1/models")).json()["data"]
            ready, status = [await client.get(place) for place in ("/ready", "/status")]
            tokens = await client.post("/tokenize", json={"content": "a"})

    assert (whole.json()["model"], streamed.text) == ("theirs", "data: [DONE]\n\n")
    assert {each.headers["x-picospec-fallback"] for each in (whole, streamed)} == {"server"}
    said = [body for body in bodies if body]
    assert [(body["model"], body.get("stream_options")) for body in said] == [
        ("theirs", None)
    ] * 2
    assert all(("store" in body) == (path == "/v1/responses") for body in said)
    heads = [dict(scope["headers"]) for scope in upstream.asked]
    assert {head[b"authorization"] for head in heads} == {b"Bearer secret"}
    assert (ready.json()["fallback"], [each["id"] for each in listed]) == ("server", ["theirs"])
    assert status.json()["fallback_server"]["model"] == "theirs"
    assert tokens.status_code == 503


async def test_a_server_that_cannot_answer_is_not_asked() -> None:
    upstream = Upstream(saying(b"{}", 401))
    async with served(upstream) as url:  # type: ignore[arg-type]  # it is an ASGI app
        own = {"url": url, "model": "theirs"}
        async with proxying(Upstream(), fallback="server", fallback_server=own) as client:
            with capture_logs() as logs:
                answer = await client.post("/v1/chat/completions", json=CHAT | {"model": "x"})

    assert answer.status_code == 503
    assert "x-picospec-fallback" not in answer.headers
    assert {scope["path"] for scope in upstream.asked} == {"/v1/models"}
    assert "it answers 401" in [line.get("reason") for line in logs]
