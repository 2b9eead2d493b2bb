"""Nothing is proxied but what is on the lists, and nothing comes back that a browser runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from edge_agent.settings import ProxySettings, load
from tests.edge_agent.proxying import MODEL, Upstream, proxying, saying
from tests.guards import GUARD_S

JSON = "content-type: application/json"
HEADERS = b"host accept content-type content-length accept-encoding user-agent".split()
ELSEWHERE = [
    "POST /v1/embedding",
    "POST /v1/embeddings/more",
    "POST /v1/embeddings/..",
    "POST /v1/embeddings/",
    "POST /v1/audio/../embeddings",
    "POST /v1/audio/..%2fmodel-facts",
    "POST /v1/audio/%2e%2e/speculate",
    "POST /v1/audio/%252e%252e/speculate",
    "POST /v1/audio/.%00/x",
    "POST /v1/audio/spee%63h",
    "POST /v1/audio%2Fspeech",
    "POST /v1/audio/",
    "POST /v1/audio//speech",
    "POST /v1/audio/speech/",
    "POST /v1/audio/sp\xe9ech",
    "POST /v1/audio/speech;a=b",
    "POST //v1/embeddings",
    "POST /v1/speculate",
    "POST /v1/model-facts",
    "POST http://127.0.0.1:9/v1/embeddings",
    "POST http://127.0.0.1:9/v1/audio/speech",
    "CONNECT 127.0.0.1:9",
]
OTHER_METHODS = [
    *(f"{name} /v1/embeddings" for name in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "X")),
    "GET /v1/audio/speech",
]
"""Requests of which none may reach an upstream."""

TYPES = {
    "Application/JSON; charset=utf-16": "application/json",
    "Text/Event-Stream": "text/event-stream; charset=utf-8",
    "text/plain; charset=utf-16": "text/plain; charset=utf-8",
    "audio/mpeg": "audio/mpeg",
    "audio/pcm;rate=24000": "audio/pcm;rate=24000",
    "image/png": "image/png",
    "image/svg+xml": None,
    "text/html": None,
    "text/html;application/json": None,
    "application/json, text/html": None,
    "application/xhtml+xml": None,
    "application/xml": None,
    "text/javascript": None,
    "audio/x+xml": None,
    "audio/mpeg, text/html": None,
    "multipart/x-mixed-replace": None,
    "": None,
}
"""Types that an upstream names, and what the client gets."""


async def sent(url: str, text: str) -> bytes:
    """Return what the edge answers to a request in these very bytes."""
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(text.replace("\n", "\r\n").encode("latin-1"))
    await writer.drain()
    async with asyncio.timeout(GUARD_S):
        answer = await reader.read()
    writer.close()
    return answer


async def test_no_other_path_and_no_other_method_is_proxied(tmp_path: Path) -> None:
    upstream, found = Upstream(), {}
    async with proxying(upstream, tmp_path) as client:
        host = f"Host: {client.base_url.netloc.decode()}\nConnection: close\n{JSON}"
        for line in (*ELSEWHERE, *OTHER_METHODS):
            body = f"{line} HTTP/1.1\n{host}\nContent-Length: 2\n\n{{}}"
            found[line] = (await sent(str(client.base_url), body)).split(b" ")[1]

    assert upstream.asked == []
    refused = {line: status for line, status in found.items() if status != b"404"}
    assert refused == {
        "POST /v1/audio/sp\xe9ech": b"400",
        "POST /v1/embeddings/": b"307",  # to the path without the slash, as any other of ours
        **dict.fromkeys(OTHER_METHODS, b"405"),
    }


async def test_what_a_head_smuggles_does_not_get_on(tmp_path: Path) -> None:
    upstream = Upstream()
    async with proxying(upstream, tmp_path) as client:
        start = f"POST /v1/embeddings HTTP/1.1\nHost: {client.base_url.netloc.decode()}\n{JSON}"
        more = "Connection: upgrade, close\nUpgrade: websocket\nTE: trailers\nX-A: b\nCookie: c"
        await sent(str(client.base_url), f"{start}\n{more}\nContent-Length: 2\n\n{{}}")
        reached = len(upstream.asked)
        for wrong in ("Accept: a\x7fb", f"Accept: {'a' * 2000}"):
            head = f"{start}\n{wrong}\nConnection: close\nContent-Length: 0\n\n"
            answer = await sent(str(client.base_url), head)
            assert answer.split(b" ")[1] == b"400"

    (scope,) = upstream.asked
    assert reached == 1
    assert {name for name, _ in scope["headers"]} <= {*HEADERS}


@pytest.mark.parametrize(("said", "expected"), TYPES.items())
async def test_only_data_sound_and_pictures_come_back(
    tmp_path: Path, said: str, expected: str | None
) -> None:
    headers = {"set_cookie": "a=b", "location": "/x", "refresh": "0", "x_own": "1"}
    upstream = Upstream(saying(b"<script>1</script>", kind=said, **headers))
    async with proxying(upstream, tmp_path) as client:
        answer = await client.post("/v1/images/generations", json={})

    if expected is None:
        assert (answer.status_code, b"script" in answer.content) == (503, False)
        assert answer.json()["error"]["code"] == "type_not_relayed"
    else:
        assert answer.headers["content-type"] == expected
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not answer.headers.keys() & {"set-cookie", "location", "refresh", "x-own"}


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    there = Upstream()
    async with proxying(there, tmp_path) as other:
        upstream = Upstream(saying(b"", 307, location=f"{other.base_url}/v1/embeddings"))
        async with proxying(upstream, tmp_path, proxy={"models": [MODEL]}) as client:
            answer = await client.post("/v1/embeddings", json={})
            held = await client.post("/v1/completions", json={"model": MODEL, "prompt": ""})

    assert (answer.status_code, held.status_code) == (500, 500)
    assert (len(upstream.asked), there.asked) == (2, [])


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/*", "/*", "v1/x", "/v1/../x", "/v1/x?a", "/v1/x/**", "/v1/%61", "/v1/x\n"),
        *("/v1/speculate", "/v1/speculate/*", "/v1/chat/completions", "/v1/model-facts"),
    ],
)
def test_a_list_cannot_open_what_is_between_the_ends(path: str) -> None:
    with pytest.raises(ValueError, match="paths"):
        ProxySettings(paths=(path,))


def test_the_key_of_the_proxy_is_kept_out_of_files_and_of_other_hosts(tmp_path: Path) -> None:
    secret = {"PICOSPEC_PROXY_KEY": "a", "PICOSPEC_VERIFIER_KEY": "b"}
    settings = load(None, secret, {"proxy": {"url": "https://far.example"}})
    file = tmp_path / "edge.toml"
    file.write_text('proxy_key = "a"')

    assert settings.shown_key == "b"
    with pytest.raises(ValueError, match=r"far\.example in the clear"):
        load(None, secret, {"proxy": {"url": "http://far.example"}})
    with pytest.raises(ValueError, match="PICOSPEC_PROXY_KEY"):
        load(file, {}, {})
    for wrong in ("http://a:b@c", "http://a/v1", "http://a?b", "ftp://a"):
        with pytest.raises(ValueError, match="url"):
            load(None, {}, {"proxy": {"url": wrong}})
