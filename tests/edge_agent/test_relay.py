"""What an edge does not speed up is answered by another service, as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from picospec.bench.link import Link
from picospec.edge_agent import relayed
from picospec.edge_agent.draft.loading import TargetTokenizer
from picospec.edge_agent.link import verifier as verifying
from picospec.edge_agent.relay import DIRECT, Json, for_verifier, relayed_request
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.services import ResponseStore, StoredResponse
from picospec.gateway.drain import Drain, beside
from picospec.verifier.app import build as build_verifier
from picospec.verifier.settings import load as load_verifier
from tests.edge_agent.relaying import (
    EMBEDDED,
    JSON,
    MODEL,
    NOWHERE,
    Answering,
    OwnApi,
    Upstream,
    embed,
    relaying,
    saying,
    streaming,
)
from tests.end_to_end.traced import serving
from tests.gateway.scripted import ByteTokenizer
from tests.hostile.test_verifier import resident_bytes
from tests.verifier.fake_target import FACTS, FakeTarget

EMBEDDINGS = "/v1/embeddings"
RECORDING = "/v1/audio/transcriptions"
RAW = {"content-type": "application/octet-stream"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}
SEEING = {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]}
PIECES = 1600
PIECE = bytes(1 << 16)


async def test_an_answer_comes_back_and_says_who_gave_it() -> None:
    upstream = Upstream()

    async with relaying(upstream) as client:
        with capture_logs() as logs:
            answer = await client.post(f"{EMBEDDINGS}?dimensions=3", json={"input": "Hi"})

    assert answer.json() == {**EMBEDDED, "got": len(answer.request.content)}
    assert answer.headers["x-picospec-relayed"] == "upstream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    (line,) = [line for line in logs if line["event"] == "request"]
    assert (line["relayed"], line["prompt_tokens"], line["status"]) == ("upstream", 7, 200)
    (asked,) = upstream.asked
    assert (asked["path"], asked["query_string"]) == (EMBEDDINGS, b"dimensions=3")


async def test_the_upstream_gets_its_own_key_and_none_of_the_clients_headers() -> None:
    names = ("PICOSPEC_API_KEYS", "PICOSPEC_VERIFIER_KEY", "PICOSPEC_RELAY_KEY")
    environ = dict(zip(names, ("clients", "edges", "upstreams"), strict=True))
    upstream = Upstream()
    headers = {"authorization": "Bearer clients", "cookie": "a=b", "x-own": "c"}

    async with relaying(upstream, environ=environ) as client:
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

    async with relaying(upstream) as client:
        await client.post(RECORDING, content=body(16), headers=RAW)
        async with beside(watch(resident_bytes())):
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
        relaying(Upstream(streaming("text/event-stream", events()))) as client,
        client.stream("POST", "/v1/audio/speech", json={}) as answer,
    ):
        pieces = answer.aiter_bytes()
        first = await anext(pieces)
        seen.set()
        rest = b"".join([piece async for piece in pieces])

    assert (first, rest) == (b"data: 1\n\n", b"data: 2\n\n")


async def test_an_answer_without_counts_is_charged_by_events_and_by_the_requests_text() -> None:
    upstream = Upstream(saying(b"data: 1\n\ndata: 2\n\n", kind="text/event-stream"))

    async with relaying(upstream) as client:
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
    async with asyncio.timeout(20), relaying(upstream) as client:
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
    async with relaying(upstream) as client:
        upstream.answer = streaming("application/json", cut())
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(EMBEDDINGS, json={})

        upstream.answer = streaming("text/event-stream", cut())
        events = await client.post(EMBEDDINGS, json={})

    broken, error = events.text.removesuffix("\n\n").split("\n\n")
    assert broken == '{"data": ['
    assert error.startswith("data: ")
    assert '"code":"upstream_unavailable"' in error


async def test_keys_limits_and_a_drain_hold() -> None:
    drain, limits = Drain(), {"requests_a_minute": 1, "tokens_a_minute": 1000}
    async with relaying(Upstream(), drain=drain, key_limits=limits) as client:
        first = await client.post(EMBEDDINGS, json={})
        second = await client.post(EMBEDDINGS, json={})
        tokens = (await client.get("/metrics")).text
    async with relaying(Upstream(), drain=drain) as client:
        drain.begin(60)
        drained = await client.post(EMBEDDINGS, json={})

    assert (first.status_code, second.status_code, drained.status_code) == (200, 429, 503)
    assert 'picospec:tenant_tokens_total{tenant="anonymous"} 7.0' in tokens
    assert drained.json()["error"]["code"] == "draining"


async def test_its_body_has_a_limit_of_its_own() -> None:
    limits: Any = {"body_limit_bytes": 1024, "relay": {"body_limit_bytes": 4096}}
    async with relaying(Upstream(), **limits) as client:
        sizes = [(EMBEDDINGS, 4096), (EMBEDDINGS, 4097), ("/tokenize", 1025)]
        found = [await client.post(p, content=bytes(n), headers=RAW) for p, n in sizes]

        async def unannounced() -> AsyncIterator[bytes]:
            yield bytes(5000)

        later = await client.post(EMBEDDINGS, content=unannounced(), headers=RAW)

    assert [answer.status_code for answer in (*found, later)] == [200, 413, 413, 413]


async def test_an_upstream_that_does_not_take_a_body_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("picospec.edge_agent.relayed.HEAD_S", 0.3)
    monkeypatch.setattr(relayed, "HEAD_S", 0.3)

    async def never(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    async with relaying(Upstream(never)) as client:
        answer = await client.post(EMBEDDINGS, json={})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "upstream_unavailable")
    assert error["message"] == "the upstream takes too long"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completions", "/api/chat"])
async def test_a_model_of_the_upstream_is_asked_there(path: str) -> None:
    upstream = Upstream()
    async with relaying(upstream, relay={"models": [MODEL]}) as client:
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
        relaying(upstream, verifier=url, relay={"models": [MODEL]}) as client,
        relaying(upstream, verifier=url, relay={"url": None}) as alone,
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
    async with relaying(Upstream(said)) as client:
        answer = await client.post(EMBEDDINGS, json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-picospec-relayed"] == "upstream"


# What no door serves is answered by the verifier's own API, if its facts have it.

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
PARTS = {
    CHATS: ["text", "image_url", "image"],
    RESPONSES: ["input_text", "output_text", "input_image"],
    "/v1/messages": ["text", "image", "tool_result"],
}
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
SAID = json.dumps({"id": "theirs", "choices": [{"text": "Ho"}], "usage": USAGE}).encode()
CHUNK = b'data: {"choices":[{"text":"Ho"}],"usage":null}\n\n'
COUNTS = b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode()
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def before(api: OwnApi, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an edge before a verifier with this API."""
    async with (
        serving(api.app()) as url,
        relaying(Upstream(), verifier=url, relay={"url": None}, **settings) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHATS, {**ASK, "bad_words": ["Ho"]}, "bad_words"),
        ("/chat/completions", {**ASK, "bad_words": ["Ho"]}, "bad_words"),
        (CHATS, {**ASK, "echo": True}, "echo"),
        (CHATS, SEEING, "messages"),
        (RESPONSES, {"input": [{**USER, "content": [{"type": "input_image"}]}]}, "input"),
        ("/v1/messages", {"messages": [{**USER, "content": [{"type": "image"}]}]}, "messages"),
        (CHATS, {**ASK, "n": 9}, "n"),
        (CHATS, {**ASK, "n": 17}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 16, "n": 8}, "prompt"),
        (COMPLETIONS, {"prompt": "Hi", "n": 128}, "n"),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": 50}, "logprobs"),
        (CHATS, {**ASK, "temperature": 2.5}, "temperature"),
        (CHATS, {**ASK, "logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "echo": True, "logprobs": 1}, "echo"),
        (COMPLETIONS, {"prompt": [[1], [2]], "use_beam_search": True}, "use_beam_search"),
        (RESPONSES, {"input": [USER], "include_reasoning": False}, "include_reasoning"),
        ("/v1/messages", {**ASK, "vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ],
)
async def test_what_only_the_verifiers_api_serves_is_answered_there(
    path: str, body: dict[str, Any], field: str
) -> None:
    more = {"store": False} if path == RESPONSES else {}
    api = OwnApi(API, saying(SAID), PARTS)
    async with before(api) as client:
        with capture_logs() as logs:
            answer = await client.post(path, json=body)

    assert (answer.status_code, answer.content) == (200, SAID), answer.text
    assert answer.headers["x-picospec-relayed"] == "verifier"
    assert answer.headers["x-picospec-relayed-for"] == field
    assert api.asked == [{**body, "model": "fake", **more}]
    (line,) = [line for line in logs if line.get("relayed_for") == field]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 4)


def parts(*kinds: str, field: str = "messages") -> dict[str, Any]:
    return {field: [{**USER, "content": [{"type": kind, "text": "a"} for kind in kinds]}]}


RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "document"}]}
TURNS = {"messages": [{**USER, "content": [{"type": "image"}, RESULT]}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHATS, {**parts("text", "file")}, "messages.0.content.1.type"),
        (CHATS, {**parts("image_url", "own")}, "messages.0.content.1.type"),
        (CHATS, {**parts("image_url", "reasoning")}, "messages.0.content.1.type"),
        (CHATS, {**parts("refusal"), "bad_words": ["Ho"]}, "messages.0.content.0.type"),
        (RESPONSES, parts("input_file", field="input"), "input.0.content.0.type"),
        ("/v1/messages", TURNS, "messages.0.content.1.content.0.type"),
        ("/v1/messages", {**ASK, "system": [{"type": "image"}]}, "system.0.type"),
    ],
)
async def test_a_part_that_the_verifiers_model_does_not_take_is_named(
    path: str, body: dict[str, Any], param: str
) -> None:
    api = OwnApi(API, saying(SAID), PARTS)
    async with before(api) as client:
        answer = await client.post(path, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, api.asked) == (400, []), answer.text
    assert error["message"].startswith(f"{param}: no such part is served; ")


async def test_a_pages_chat_is_relayed_without_being_joined_again() -> None:
    body, api = {**ASK, "bad_words": ["Ho"]}, OwnApi(API, saying(SAID))
    async with before(api) as client:
        answer = await client.post(CHATS, json={**body, "background": True})

    assert (answer.status_code, api.asked) == (200, [{**body, "model": "fake"}])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHATS, {**ASK, "prompt_logprobs": 1}, "prompt_logprobs"),  # not in the facts
        (CHATS, {**ASK, "bad_words": ["Ho"], "mirostat": 2}, "mirostat"),
        (CHATS, {**ASK, "bad_words": ["Ho"], "think": False}, "think"),
        (CHATS, {"bad_words": ["Ho"]}, "messages"),
        (CHATS, {**ASK, "model": ["fake"]}, "model"),
        (CHATS, {**ASK, "n": 9, "model": ["fake"]}, "model"),
        (CHATS, {**ASK, "max_completion_tokens": 4}, "max_completion_tokens"),
        (CHATS, {"messages": [{**USER, "audio": {"id": "a"}}]}, "messages.0.audio"),
        (CHATS, {**ASK, "n": 129}, "n"),
        (CHATS, {**ASK, "bad_words": ["Ho"], "n": "2"}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "prompt"),
        (
            COMPLETIONS,
            {"prompt": ["a"] * 65, "use_beam_search": True, "n": 2},
            "use_beam_search",
        ),
        (
            RESPONSES,
            {"input": "Hi", "include_reasoning": False, "background": True},
            "background",
        ),
    ],
)
async def test_what_nobody_serves_or_would_be_ignored_there_is_named(
    path: str, body: dict[str, Any], field: str
) -> None:
    api = OwnApi(API, saying(SAID))
    async with before(api) as client:
        answer = await client.post(path, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert "x-picospec-relayed" not in answer.headers
    assert api.asked == []


async def test_a_chat_that_only_the_verifier_can_render_is_answered_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def tokenizer(*_: object) -> ByteTokenizer:
        return ByteTokenizer(takes_tools=False)

    monkeypatch.setattr(TargetTokenizer, "__call__", tokenizer)
    api, unrendered = OwnApi(API, saying(SAID)), {"role": "assistant", "content": "Hi"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with before(api) as client:
        answer = await client.post(CHATS, json={"messages": [unrendered]})
        unseen = await client.post(CHATS, json={**ASK, "tools": tools})

    assert (answer.content, answer.headers["x-picospec-relayed-for"]) == (SAID, "messages")
    assert (unseen.status_code, unseen.json()["error"]["param"]) == (400, "tools")


async def test_a_prompt_is_rendered_where_the_verifier_does_so() -> None:
    path = "/v1/completions/render"
    api = OwnApi({path: []}, saying(b"[]"))
    async with before(api, model_aliases=["alias"]) as client:
        rendered = await client.post(path, json={"prompt": "Hi", "model": "alias"})
        absent = await client.post("/v1/chat/completions/render", json=ASK)
        wrong = await client.post(path, json={"prompt": "Hi", "model": ["alias"]})

    assert (rendered.content, absent.status_code, wrong.status_code) == (b"[]", 404, 400)
    assert api.asked == [{"prompt": "Hi", "model": "fake"}]


RENDER = "/v1/completions/render"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DIRECT, {**ASK, "seed": 1}),
        (RENDER, {"prompt": "Hi"}),
        (CHATS, {**ASK, "bad_words": ["Ho"]}),
        (EMBEDDINGS, {"input": "Hi"}),
    ],
)
async def test_nothing_is_relayed_over_an_idle_connection_that_carries_nothing(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(verifying, "now_with_sleep", lambda: now)
    api = OwnApi({**API, RENDER: [], EMBEDDINGS: []}, saying(SAID))
    async with serving(api.app()) as url, Link(("127.0.0.1", int(url.split(":")[2]))) as link:
        there = f"http://127.0.0.1:{link.port}"
        async with relaying(Upstream(), verifier=there, relay={"url": None}) as client:
            before = await client.post(path, json=body)
            for connection in link.connections:
                connection.stall(True)
            now += verifying.IDLE_S + 1

            async with asyncio.timeout(5):
                after = await client.post(path, json=body)

    assert before.content == after.content == SAID


async def test_what_changes_no_answer_is_left_out_and_named() -> None:
    api = OwnApi(API, saying(SAID))
    odd = {"bad_words": ["Ho"], "mirostat": 0, "user": "ann", "own": 1, "n": None}
    async with before(api) as client:
        answer = await client.post(CHATS, json={**ASK, **odd})

    assert api.asked == [{**ASK, "bad_words": ["Ho"], "model": "fake"}]
    assert answer.headers["x-picospec-ignored"] == "mirostat, user, own"


async def test_a_refusal_is_the_verifiers() -> None:
    refusal = {"error": {"message": "no such word", "param": "bad_words", "code": 400}}
    api = OwnApi(API, saying(json.dumps(refusal).encode(), 400))
    async with before(api) as client:
        answer = await client.post(CHATS, json={**ASK, "bad_words": ["Ho"]})

    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (400, "no such word")
    assert (error["param"], answer.headers["x-picospec-relayed-for"]) == ("bad_words",) * 2


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_is_charged_by_its_usage_which_only_they_see_who_ask(
    cut: int, asks: bool
) -> None:
    stream = CHUNK * 3 + COUNTS + DONE

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(stream), cut):
            yield stream[at : at + cut]

    api = OwnApi(API, streaming("text/event-stream", pieces()))
    options = {"stream_options": {"include_usage": asks, "continuous_usage_stats": True}}
    async with before(api) as client:
        with capture_logs() as logs:
            asked = {**ASK, **options, "bad_words": ["Ho"], "stream": True}
            answer = await client.post(CHATS, json=asked)

    assert answer.content == (stream if asks else CHUNK * 3 + DONE)
    wanted = options["stream_options"] if asks else {"include_usage": True}
    assert api.asked[0]["stream_options"] == wanted
    (line,) = [line for line in logs if line.get("relayed")]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 4)


async def test_a_body_may_be_larger_than_a_text_if_it_has_images() -> None:
    def chat(kind: str, size: int) -> dict[str, Any]:
        return {"messages": [{**USER, "content": [{"type": kind, "text": "a" * size}]}]}

    api, cases = OwnApi(API, saying(SAID), PARTS), [("image", 15), ("image", 17), ("text", 15)]
    async with before(api) as client:
        found = [await client.post(CHATS, json=chat(k, n << 20)) for k, n in cases]

    assert [answer.status_code for answer in found] == [200, 413, 413]


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ({"prompt": "a"}, 2),
        ({"prompt": [1, 2, 3]}, 2),
        ({"prompt": ["a", "b"]}, 4),
        ({"prompt": [[1], [2], [3]]}, 6),
        ({"prompt": "a", "prompt_embeds": ["b", "c"]}, 6),
        ({"prompt": [1, [2], [3]]}, 6),
        ({"prompt": []}, 2),
    ],
)
def test_no_form_of_prompts_counts_as_fewer_answers(prompts: Json, answers: int) -> None:
    asked = {**prompts, "n": 2, "stream": "yes", "stream_options": {"include_usage": "yes"}}
    facts = msgspec.structs.replace(FACTS, served={COMPLETIONS: [*asked]})
    made = for_verifier(COMPLETIONS, asked, "n", facts, CompletionRequest)

    assert (made.answers, made.hides_usage) == (answers, True)
    assert made.fields["stream_options"] == {"include_usage": True}


async def test_its_choices_prompts_and_beams_count_as_answers() -> None:
    api = OwnApi(API, saying(SAID))
    body = {"prompt": ["a", "b"], "use_beam_search": True, "n": 3}
    async with before(api, key_limits={"sessions": 5}) as client:
        many = await client.post(COMPLETIONS, json=body)
        few = await client.post(COMPLETIONS, json={**body, "n": 2})

        beyond = {"prompt": ["a"] * 9, "n": 2}
        third = await client.post(COMPLETIONS, json=beyond)

    assert (many.status_code, few.status_code, len(api.asked)) == (429, 200, 1)
    assert third.status_code == 429


async def test_an_answer_that_breaks_off_says_why_no_other_verifier_goes_on() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield CHUNK
        raise ConnectionError

    api = OwnApi(API, streaming("text/event-stream", cut()))
    async with before(api) as client:
        answer = await client.post(CHATS, json={**ASK, "bad_words": ["Ho"], "stream": True})

    assert answer.content.startswith(CHUNK)
    assert "it alone serves bad_words, so no other one goes on" in answer.text


async def test_a_response_goes_with_the_history_that_the_edge_keeps() -> None:
    api = OwnApi(API, saying(SAID), PARTS)
    odd = {"include_reasoning": False}
    kept = StoredResponse(
        b'{"output": [{"type": "message", "role": "assistant", "content": "A"}]}',
        b'[{"role": "user", "content": "Q"}]',
    )
    async with before(api) as client:
        with patch.object(
            ResponseStore, "find", lambda _, id: kept if id == "resp_1" else None
        ):
            body = {"previous_response_id": "resp_1", "input": "Hi", **odd}
            found = await client.post(RESPONSES, json=body)
            body["previous_response_id"] = "resp_2"
            absent = await client.post(RESPONSES, json=body)

    texts = [item["content"] for item in api.asked[0]["input"]]
    assert [text if isinstance(text, str) else text[0]["text"] for text in texts] == [
        "Q",
        "A",
        "Hi",
    ]
    assert (found.status_code, api.asked[0]["store"]) == (200, False)
    assert found.headers["x-picospec-ignored"] == "store"
    assert "previous_response_id" not in api.asked[0]
    assert absent.json()["error"]["code"] == "previous_response_not_found"


# A look into a body says whether it is for a model of the upstream, whatever its door.


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
def test_a_listed_model_is_seen_in_any_doors_body(
    body: dict[str, object], has_media: bool | None
) -> None:
    found = relayed_request(json.dumps({"model": MODEL, **body}).encode(), [MODEL])

    assert (found and found.has_media) == has_media


NESTED = b'{"content": [' * 400 + b"]}" * 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 10**5, b"\xff", b'{"messages": [{"image":}]}', b'{"messages": [%b]}' % NESTED],
)
def test_a_body_that_is_wrong_goes_to_its_door(body: bytes) -> None:
    asked = b'{"model": "%b", %b' % (MODEL.encode(), body[1:])
    assert relayed_request(asked, [MODEL]) is None
    assert relayed_request(body, [MODEL]) is None
