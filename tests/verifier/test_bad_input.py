"""Each bad input gives its defined error, ends no more than its own session, leaks nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from msgspec import Raw, structs

from speculation import wire
from speculation.messages import MAX_PREDICTED, Draft, Fault, Finish, Open, Sampling
from speculation.model_facts import MAX_VOCABULARY, PROTOCOL_VERSION
from tests.golden import Json, Line, grown, lines_of
from tests.verifier.conftest import KEY, http2_client, sessions_open, until_open
from tests.verifier.down import opened, push
from tests.verifier.fake_target import FACTS, STALLS, V, opening
from verifier.routes import DRAFTS_BYTES, open_bytes

OPENS = [*lines_of(Path(__file__).with_name("opens.jsonl"))]
"""Each has what differs from an Open that is served, and how it is refused."""

GARBAGE = [
    ("nothing", b""),
    ("a frame cut short", wire.encode(opening())[:-3]),
    ("text", b"GET / HTTP/1.1\r\n\r\n" * 4),
    ("an unknown type", b"\x01\x63"),
    ("another message", wire.encode(Draft(0, 0, 0, (1,)))),
    ("two messages", wire.encode(opening()) * 2),
]
BAD_DRAFTS = {
    "nothing": (b"", "without a message"),
    "no token of the target": (wire.encode(Draft(0, 0, 0, (V,))), "Draft.tokens"),
    "a gap to the text": (wire.encode(Draft(0, 5, 0, (1,))), "Draft.offset"),
    "weights in coupled": (wire.encode(Draft(0, 0, 0, (1,), q=(5,))), "Draft.q"),
    "truncated": (wire.encode(Draft(0, 0, 0, (1, 2)))[:-1], ""),
    "garbage": (b"\xff" * 20, ""),
    "an unknown type": (b"\x05\x63abcd", ""),
    "an Open": (wire.encode(opening()), "Open: not in this direction"),
}
"""The error says this of a body. Which drafts are dishonest, the session's own tests say."""


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


async def open_with(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post("/v1/speculate", content=content)


async def serves(client: httpx.AsyncClient) -> None:
    async with opened(client, opening()) as stream:
        assert isinstance((await stream.rest())[-1], Finish)
    await until_open(client, 0)


def open_of(fields: Json) -> Open:
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in grown(fields).items()}
    return opening(**given | {"sampling": Sampling(**given.get("sampling", {}))})


@pytest.mark.parametrize("line", OPENS, ids=lambda line: json.dumps(line.given["open"]))
async def test_an_open_that_cannot_be_served_is_refused_by_its_field(
    client: httpx.AsyncClient, line: Line, request: pytest.FixtureRequest
) -> None:
    answer = await open_with(client, wire.encode(open_of(line.given["open"])))

    error = answer.json()["error"]
    found = {"status": answer.status_code, "field": error["param"], "code": error["code"]}
    line.check(found, request, found)
    assert await sessions_open(client) == 0


@pytest.mark.parametrize("newer", [-1, 1])
async def test_an_open_of_another_version_is_refused(
    client: httpx.AsyncClient, newer: int
) -> None:
    answer = await open_with(client, wire.encode(opening(version=PROTOCOL_VERSION + newer)))

    assert (answer.status_code, code_of(answer)) == (400, "unsupported_version")
    assert answer.json()["error"]["param"] == "version"


@pytest.mark.parametrize("content", [g for _, g in GARBAGE], ids=[name for name, _ in GARBAGE])
async def test_what_is_no_open_is_malformed(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await open_with(client, content)

    assert (answer.status_code, code_of(answer)) == (400, "malformed_frame")
    assert await sessions_open(client) == 0
    await serves(client)


async def test_an_open_over_the_limit_is_too_large(client: httpx.AsyncClient) -> None:
    answer = await open_with(client, b"\0" * (open_bytes(FACTS) + 1))

    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")
    await serves(client)


@pytest.mark.parametrize(("key", "size"), [(KEY, 16 << 20), ("wrong", 1 << 19)])
async def test_a_client_that_still_sends_a_refused_body_gets_the_answer(
    server: str, key: str, size: int
) -> None:
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {size}")
    head = "\r\n".join((*lines, f"authorization: Bearer {key}", "", ""))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.rsplit(":", 1)[1]))

    writer.write(head.encode())
    for _ in range(256):
        writer.write(b" " * (size // 256))
        await writer.drain()
    status = (await reader.readuntil(b"\r\n")).split()[1]
    writer.close()

    assert status == {KEY: b"413", "wrong": b"401"}[key]


@pytest.mark.parametrize("key", ["", "wrong", "correct-hors", "Correct-horse"])
@pytest.mark.parametrize("path", ["/v1/speculate", "/v1/speculate/x/drafts"])
async def test_a_wrong_key_opens_nothing(server: str, path: str, key: str) -> None:
    async with http2_client(server, key) as stranger:
        answer = await stranger.post(path, content=wire.encode(opening()))

    assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")


@pytest.mark.parametrize("name", BAD_DRAFTS)
async def test_what_is_no_draft_of_an_honest_edge_ends_its_session(
    client: httpx.AsyncClient, name: str
) -> None:
    content, reason = BAD_DRAFTS[name]
    async with opened(client, opening(fill="never")) as stream:
        session = await stream.opened()
        answer = await client.post(f"/v1/speculate/{session}/drafts", content=content)
        (fault,) = await stream.rest()

    assert (answer.status_code, code_of(answer)) == (400, "protocol_error")
    assert reason in answer.json()["error"]["message"]
    assert isinstance(fault, Fault)
    assert fault.code == "protocol_error"
    await serves(client)


@pytest.mark.parametrize("context_tokens", [64, 200_000, 1_000_000])
def test_an_open_may_have_a_text_that_fills_the_context(context_tokens: int) -> None:
    facts = structs.replace(FACTS, context_tokens=context_tokens)
    text = (MAX_VOCABULARY - 1,) * (context_tokens // 2)
    asked = opening(
        prompt=text, committed=text, predicted=text[:MAX_PREDICTED], max_tokens=1,
        sampling=Sampling(extras={"structured_outputs": Raw(b'"%b"' % (b"x" * (1 << 18)))}),
    )  # fmt: skip

    assert len(wire.encode(asked)) <= open_bytes(facts)


async def test_drafts_over_the_limit_are_too_large_and_harm_nothing(
    client: httpx.AsyncClient,
) -> None:
    async with opened(client, opening(fill="never", max_tokens=1)) as stream:
        session = await stream.opened()
        answer = await client.post(
            f"/v1/speculate/{session}/drafts", content=b"\0" * (DRAFTS_BYTES + 1)
        )
        await push(client, session, Draft(0, 0, 0, (1,)))
        messages = await stream.rest()

    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")
    assert isinstance(messages[-1], Finish)


async def test_a_session_that_never_was_or_has_finished_takes_no_draft(
    client: httpx.AsyncClient,
) -> None:
    async with opened(client, opening()) as stream:
        finished = await stream.opened()
        await stream.rest()

    for session in ("nobody", finished):
        answer = await push(client, session, Draft(0, 0, 0, (1,)))
        assert (answer.status_code, code_of(answer)) == (404, "unknown_session")


async def test_of_a_thousand_sessions_those_over_the_limit_come_back_later(
    client: httpx.AsyncClient,
) -> None:
    content = wire.encode(opening(prompt=(STALLS,)))
    streams: list[httpx.Response] = []
    codes: list[tuple[int, str]] = []

    async def ask(count: int) -> None:
        for _ in range(count):
            request = client.build_request("POST", "/v1/speculate", content=content)
            answer = await client.send(request, stream=True)
            if answer.status_code == 200:
                streams.append(answer)
            else:
                await answer.aread()
                codes.append((answer.status_code, answer.headers["retry-after"]))

    await asyncio.gather(*(ask(50) for _ in range(20)))
    running = await sessions_open(client)
    for answer in streams:
        await answer.aclose()

    assert (len(streams), running) == (64, 64)
    assert codes == [(429, "1")] * 936
    await serves(client)
