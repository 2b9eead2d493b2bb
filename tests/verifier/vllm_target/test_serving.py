"""A plain `vllm serve` with our plugin: sessions and vLLM's own API, on its port and ours;
where it serves no sessions, it is as without us, or ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from bench.run.services import free_port
from speculation import wire
from speculation.messages import Commit, Open, Sampling
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, http2_client, metrics
from tests.verifier.down import HEADERS, Stream, opened
from tests.verifier.vllm_target.conftest import (
    MODEL,
    START_S,
    VLLMS_KEY,
    ready,
    vllm_serve,
    wait_for,
    with_drafts,
)
from tests.verifier.vllm_target.scripted import PROMPTS
from verifier.vllm_target.launching import module

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),
]


def serve(model: Path, *flags: str, port: int) -> subprocess.Popen[str]:
    """Start vLLM's server with one layer of a model, and no weights."""
    environment = {
        **os.environ, "VLLM_PLUGINS": "picospec", "VLLM_NO_USAGE_STATS": "1",
        "PICOSPEC_VERIFIER__PORT": str(free_port()),
    }  # fmt: skip
    command = [
        sys.executable, "-m", *module(), "--model", str(model), "--served-model-name", "tiny",
        "--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 1}',
        "--enforce-eager", "--dtype", "float32", "--max-model-len", "128",
        "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(1 << 26),
        "--port", str(port), *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_a_server_of_embeddings_serves_without_session_routes(directory: Path) -> None:
    port = free_port()
    server = serve(directory, "--runner", "pooling", port=port)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            asked = {"model": "tiny", "input": [1, 5, 9]}
            found = client.post("/v1/embeddings", json=asked, timeout=GUARD_S).json()

            assert len(found["data"][0]["embedding"]) > 1
            assert client.post("/v1/speculate").status_code == 404
            assert client.get("/v1/model-facts").status_code == 404
    finally:
        server.terminate()
        server.communicate(timeout=GUARD_S)


@pytest.mark.long
def test_a_flag_that_conflicts_ends_vllm_with_a_line_that_names_it(directory: Path) -> None:
    server = serve(directory, "--use-fp64-gumbel", port=free_port())

    _, errors = server.communicate(timeout=START_S)

    assert server.returncode != 0
    assert "--use-fp64-gumbel cannot be used with VLLM_PLUGINS=picospec" in errors


# Sessions and vLLM's own API, on its port and ours.


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[bytes]
    ours: httpx.AsyncClient
    vllms: httpx.AsyncClient
    facts: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(directory: Path, tmp_path_factory: Any) -> AsyncIterator[Served]:
    port, own_port = free_port(), free_port()
    process = vllm_serve(directory, tmp_path_factory.mktemp("packages"), port, own_port)
    url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {VLLMS_KEY}"}
    vllms = httpx.AsyncClient(base_url=url, headers=headers, timeout=GUARD_S)
    try:
        async with http2_client(f"http://127.0.0.1:{own_port}") as ours, vllms:
            ours.timeout = httpx.Timeout(60)
            await ready(process, ours)
            facts = (await ours.get("/v1/model-facts")).json()
            yield Served(process, ours, vllms, facts)
    finally:
        process.kill()
        process.wait(timeout=GUARD_S)


def opening(served: Served, prompt: list[int], sampling: Sampling, tokens: int = 24) -> Open:
    facts = served.facts
    return Open(facts["model"], facts["vocabulary"], tuple(prompt), sampling, 7, tokens, ())


async def plain(client: httpx.AsyncClient, prompt: object, **more: object) -> Any:
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "seed": 7, **more}
    answer = await client.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_sessions_text_is_what_vllms_own_route_says(
    served: Served, temperature: float
) -> None:
    for i, text in enumerate(PROMPTS):
        said = await plain(
            served.vllms, text, temperature=temperature, return_token_ids=True, ignore_eos=True
        )
        choice = said["choices"][0]
        request = opening(served, choice["prompt_token_ids"], Sampling(temperature=temperature))
        client = (served.ours, served.vllms)[i % 2]

        tokens, accepted = await with_drafts(client, request, choice["token_ids"])

        assert tokens == choice["token_ids"]
        assert accepted > 10


async def test_vllms_whole_api_answers_on_both_ports(served: Served) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    bodies = {
        "/v1/chat/completions": chat,
        "/v1/messages": chat,
        "/v1/responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 16},
        "/tokenize": {"model": MODEL, "prompt": "Hello"},
    }
    for path, body in bodies.items():
        answers = [await each.post(path, json=body) for each in (served.ours, served.vllms)]

        assert [answer.status_code for answer in answers] == [200, 200], path


async def test_whoever_asks_by_our_port_is_charged(served: Served) -> None:
    name = 'picospec:tenant_tokens_total{tenant="key-2"}'
    before = (await metrics(served.ours)).get(name, 0.0)

    said = await plain(served.ours, "one two three", max_tokens=5, ignore_eos=True, n=2)

    spent = (await metrics(served.ours))[name] - before
    assert spent == said["usage"]["total_tokens"]


async def test_each_port_has_its_own_key(served: Served) -> None:
    ours = {"authorization": f"Bearer {KEY}"}
    vllms = {"authorization": f"Bearer {VLLMS_KEY}"}
    for path in ("/v1/models", "/v1/model-facts"):
        assert (await served.ours.get(path, headers=vllms)).status_code == 401
        assert (await served.vllms.get(path, headers=ours)).status_code == 401
    assert (await served.ours.get("/tokenizer_info", headers=vllms)).status_code == 401


async def test_a_body_of_100_mb_is_refused_while_others_are_served(served: Served) -> None:
    large, other = await asyncio.gather(
        served.ours.post("/v1/completions", content=bytes(100_000_000)),
        plain(served.ours, "one two", max_tokens=2),
    )

    assert (large.status_code, other["choices"][0]["finish_reason"]) == (413, "length")


CHOKING: dict[str, tuple[int, str, Any]] = {
    "/v1/chat/completions": (400, "too_many_values", b'{"messages":[' + b"{}," * 300_000),
    "/v1/completions?grammar": (400, "BadRequestError", {
        "structured_outputs": {"json": {"type": "integer", "multipleOf": 1_000_003}},
    }),
    "/v1/completions?choices": (400, "BadRequestError", {"n": 16_000, "max_tokens": 1}),
    "/v1/completions?prompts": (400, "BadRequestError", {"prompt": ["a"] * 1000}),
    "/tokenize": (413, "request_too_large", {"prompt": "a b " * 500_000}),
}  # fmt: skip
"""Requests that take vLLM's own server seconds or gigabytes, most of them less than a megabyte:
the status and the error they get."""


@pytest.mark.parametrize("path", CHOKING)
async def test_what_would_stop_vllm_is_refused_while_others_are_served(
    served: Served, path: str
) -> None:
    status, code, more = CHOKING[path]
    asked = {"model": MODEL, "prompt": "a", "max_tokens": 2}
    content = more if isinstance(more, bytes) else json.dumps(asked | more).encode()

    answer, other = await asyncio.gather(
        served.ours.post(path, content=content, headers={"content-type": "application/json"}),
        plain(served.ours, "one two", max_tokens=2),
    )

    error = answer.json()["error"]
    assert answer.status_code == status
    assert code in (error["code"], error["type"])
    assert other["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "head", "status"),
    [
        ("/metrics", "", 200),
        ("/metrics/", "", 401),
        ("/metrics/../v1/models", "", 401),
        ("/%76%31/models", "", 401),
        ("/health", "host: b\r\n", 400),
        ("/v1/models", f"authorization: Bearer {KEY}\r\n" * 2, 400),
    ],
)
async def test_a_request_has_one_host_and_a_key(
    served: Served, path: str, head: str, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.ours.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n{head}\r\n".encode())

    assert int((await reader.readline()).split()[1]) == status
    writer.close()


async def test_nobody_reads_or_ends_a_session_of_another_tenant(served: Served) -> None:
    request = opening(served, [5, 6, 7], Sampling(temperature=0.0))
    async with (
        http2_client(str(served.ours.base_url), "other") as other,
        opened(served.ours, request) as stream,
    ):
        path = f"/v1/speculate/{await stream.opened()}"
        answers = [await other.request(how, path) for how in ("GET", "DELETE")]

        assert [answer.status_code for answer in answers] == [404, 404]
        assert await _last(stream) == "Finish"


async def test_an_open_for_a_model_that_is_not_served_names_it(served: Served) -> None:
    request = replace(opening(served, [5, 6], Sampling()), model="another")
    for client in (served.ours, served.vllms):
        answer = await client.post(
            "/v1/speculate", content=wire.encode(request), headers=HEADERS
        )

        assert answer.status_code == 404
        assert answer.json()["error"]["param"] == "model"


async def test_sigterm_lets_a_session_and_a_stream_finish(served: Served) -> None:
    """It ends the fixture's service, and so is the last. On a busy host a step takes most of a
    second, and a drain waits for a minute."""
    request = opening(served, [5, 6, 7], Sampling(temperature=0.0), tokens=40)
    asked = {"model": MODEL, "prompt": "one", "max_tokens": 40, "ignore_eos": True}
    streamed = served.vllms.stream("POST", "/v1/completions", json=asked | {"stream": True})
    async with opened(served.ours, request) as session, streamed as stream:
        await session.opened()
        assert isinstance(await session.next(), Commit)

        served.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)

        refused = [await each.get("/ready") for each in (served.ours, served.vllms)]
        assert [answer.status_code for answer in refused] == [503, 503]
        refusal = await served.vllms.post("/v1/completions", json=asked)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "draining")
        assert await _last(session) == "Finish"
        lines = [line async for line in stream.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert await asyncio.to_thread(served.process.wait, 30) == 0


async def _last(session: Stream) -> str:
    return type((await session.rest())[-1]).__name__
