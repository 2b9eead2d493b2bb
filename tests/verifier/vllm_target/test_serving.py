"""A plain `vllm serve` with our plugin: sessions and vLLM's own API, on its port and ours, and
behind an edge. Where it serves no sessions, it is as without us, or ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from bench.run.services import free_port
from gateway.hosting.processes import Child, Service
from gateway.hosting.readiness import until_ready
from local_models.store import open_store
from speculation.messages import Commit, Open, Sampling
from tests.faults.rig.asking import MODEL as FAULTS_MODEL
from tests.faults.rig.asking import Answer
from tests.faults.rig.world import FOLDER, Plan, World
from tests.faults.strikes import Strike, ask_again, drain, struck
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, metrics
from tests.verifier.down import Stream, opened
from tests.verifier.vllm_target.conftest import (
    MODEL,
    SMALL,
    VLLMS_KEY,
    Served,
    vllm_serve,
    wait_for,
    with_drafts,
)
from tests.verifier.vllm_target.request_values import (
    CHATS,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    USUAL,
    requests,
)
from tests.verifier.vllm_target.scripted import PERSON, PROMPTS
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


# Sessions and vLLM's own API, on its port and ours.


HUGE = "Use much memory."
COSTLY = f"""{{% if messages[0].content == '{HUGE}' -%}}
  {{% set _ = ('a' * (messages | length * 600 * 2 ** 20)) | length -%}}
{{% endif -%}}
"""
"""The template of the model begins with this. For one chat it takes more memory than a process
has in which an edge renders (local_models/template.py); vLLM renders any chat."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(directory: Path, tmp_path_factory: Any) -> AsyncIterator[Served]:
    folder: Path = tmp_path_factory.mktemp("served")
    template = folder / "costly.jinja"
    template.write_text(COSTLY + (directory / "chat_template.jinja").read_text())
    async with vllm_serve(directory, folder, "--chat-template", str(template)) as running:
        yield running


def opening(served: Served, prompt: list[int], sampling: Sampling, tokens: int = 24) -> Open:
    facts = served.facts
    return Open(facts.model, facts.vocabulary, tuple(prompt), sampling, 7, tokens, ())


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


CHOKING: dict[str, tuple[int, str, Any]] = {
    "/v1/completions?body": (413, "request_too_large", bytes(100_000_000)),
    "/v1/chat/completions": (400, "too_many_values", b'{"messages":[' + b"{}," * 300_000),
    "/v1/completions?grammar": (400, "BadRequestError", {
        "structured_outputs": {"json": {"type": "integer", "multipleOf": 1_000_003}},
    }),
    "/v1/completions?choices": (400, "BadRequestError", {"n": 16_000, "max_tokens": 1}),
    "/v1/completions?prompts": (400, "BadRequestError", {"prompt": ["a"] * 1000}),
    "/tokenize": (413, "request_too_large", {"prompt": "a b " * 500_000}),
}  # fmt: skip
"""Requests that take vLLM's own server seconds or gigabytes, though most have less than a
megabyte: the status and the error they get."""


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


# An edge and its vLLM answer alike.


@asynccontextmanager
async def edge_of(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """Run an edge in front of this vLLM; give a client of it."""
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    url = f"http://127.0.0.1:{free_port()}"
    command = (
        sys.executable, "-m", "edge_agent", "--port", url.rpartition(":")[2],
        "--verifier-url", served.url, "--draft-model", "smollm2",
    )  # fmt: skip
    service = Service("edge", command, url, environment={"PICOSPEC_VERIFIER_KEY": KEY})
    async with (
        asyncio.TaskGroup() as relays,
        Child(service, lambda name, line: None, relays),
        httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client,
    ):
        await until_ready([service], client, within_s=GUARD_S)
        yield client


def schema(shape: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "shape", "schema": shape}}


PERSONAL = {
    "messages": [{"role": "user", "content": "Tell me about a person you know."}],
    "max_tokens": 48, "seed": 3,
}  # fmt: skip
DRAFTED: dict[str, dict[str, Any]] = {
    "drawn": {"temperature": 1.0, "top_p": 0.95},
    "stop": {"stop": [" the", "\n\n"]},
    "penalties": {"presence_penalty": 1.2, "frequency_penalty": 0.5},
    "bias": {"logit_bias": {"28": 4, "30": -100}},
    "min_tokens": {"min_tokens": 40},
    "schema": {"response_format": schema(PERSON), "logprobs": True},
    "nonsense": {"response_format": schema({"type": "nonsense"})},
}
"""Answers that are long enough for drafts."""

MORE: list[tuple[str, str, dict[str, Any]]] = [
    (CHATS, "bad_words", {"bad_words": [" red", "Red"], "stream": True}),
    (CHATS, "allowed_token_ids", {"allowed_token_ids": [28, 30, 253], "stream": True}),
    (CHATS, "temperature", {"temperature": 2.5, "seed": 1}),
    (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "stream": True}),
    (MESSAGES, "vllm_xargs", {"vllm_xargs": {"a": 1}, "stream": True}),
    (CHATS, "messages", {"messages": [{"role": "user", "content": HUGE}]}),
    (CHATS, "messages", {"messages": [{"role": "user", "content": HUGE}], "stream": True}),
]
"""What is proxied: fields together with others, and a chat that an edge cannot render."""

OURS = {
    (CHATS, "documents"),  # vLLM leaves them out without a word
    (RESPONSES, "previous_response_id"),  # an edge keeps responses, and has OpenAI's error
}
"""An edge refuses these, and vLLM answers otherwise (docs/api.md)."""

OWN = re.compile(
    r'"(?:id|item_id|created|created_at|system_fingerprint)": ?(?:"[^"]*"|[0-9.]+),?'
)
"""Each answer has others of these, and a stream that is not counted has no fingerprint."""

TEXTS = {
    "content", "text", "delta", "reasoning", "thinking", "token", "tokens",
    "finish_reason", "stop_reason", "stop_sequence", "reason",
}  # fmt: skip
COUNTS = {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"}


def shown(answer: httpx.Response) -> tuple[int, str]:
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]["message"]
    return 200, OWN.sub("", answer.text).replace(",}", "}")


def said(answer: httpx.Response) -> dict[str, Any]:
    """What an answer says, in whatever fields and events: its texts and tokens, joined by the
    fields' names, the reasons why it ended, the scores, and the last counts."""
    if answer.status_code != 200:
        return {"status": answer.status_code}
    sent = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    found: dict[str, Any] = {}
    for name, value in leaves([json.loads(each) for each in sent or [answer.text]]):
        if name in TEXTS and isinstance(value, str):
            found[name] = found.get(name, "") + value
        elif name in COUNTS and value is not None:
            found[name] = value
        elif name in ("logprob", "token_logprobs"):
            found.setdefault(name, []).append(value and round(value, 2))
    if "finish_reason" in found:
        found.pop("stop_reason", None)  # vLLM's, beside OpenAI's
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else [(name, each) for each in value]
        for inner, each in pairs:
            yield from leaves(each, inner)
    else:
        yield name, value


async def test_an_edge_and_its_vllm_answer_alike_whatever_they_are_asked(
    served: Served, is_long: bool
) -> None:
    """Both are asked with each field of vLLM's classes, two fields at a time: by one API that
    has it, and with --long by each."""
    from verifier.vllm_target.serving.request_fields import REQUESTS

    limits = asyncio.Semaphore(2)

    async def ask(
        path: str, field: str, given: dict[str, Any], must_relay: bool = False
    ) -> None:
        body = {"model": MODEL, "temperature": 0, **given}
        async with limits:
            plain, through = await asyncio.gather(
                *(client.post(path, json=body) for client in (served.ours, edge))
            )
        if field_asked := through.headers.get("x-picospec-relayed-for"):
            assert field_asked in given, (path, field)
            as_sent = said if given.get("stream") else shown  # vLLM joins deltas if it is busy
            assert as_sent(through) == as_sent(plain), (path, field)
        else:
            assert not must_relay, (path, field)
            is_equal = said(through) == said(plain)
            assert is_equal is ((path, field) not in OURS), (path, said(through), said(plain))
            assert field != "nonsense" or plain.status_code == 400

    fields = requests(REQUESTS)
    if not is_long:
        fields = list({each[1]: each for each in reversed(fields)}.values())
    async with edge_of(served) as edge, asyncio.TaskGroup() as group:
        for path, field, given in fields:
            group.create_task(ask(path, field, given))
        for name, given in DRAFTED.items():
            group.create_task(ask(CHATS, name, PERSONAL | given))
        for path, field, given in MORE:
            group.create_task(ask(path, field, {**USUAL[path], **given}, must_relay=True))


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


# Answers of a verifier on vLLM that ends, or whose engine is killed, go on at another one.


ENGINE = (
    "--target", "vllm", *SMALL, "--vllm.max-model-len", "1024", "--vllm.self-test", "false",
    "--pass-timeout-s", "300", "--served-name", FAULTS_MODEL,
)  # fmt: skip
ENDS = {"stop", "length", "tool_calls"}
REOPENED = "picospec:edge_reopened_answers_total"
AT_ONCE = ("--drain-timeout-s", "0")
"""Answers as short as these would end within a deadline."""


def _rounded(answer: Answer) -> Answer:
    """Return it with log-probabilities to three digits: their last ones depend on the other
    rows of a pass."""
    logprobs = [{**each, "logprob": round(each["logprob"], 3)} for each in answer.logprobs]
    return replace(answer, logprobs=[{**each, "top_logprobs": []} for each in logprobs])


def is_core(pid: int) -> bool:
    return b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def kill_core(world: World) -> None:
    """Kill vLLM's core; its API server is to notice, and to end."""
    verifier = await world.used()
    (core,) = filter(is_core, verifier.pids)
    os.kill(core, signal.SIGKILL)
    await verifier.ended()


@pytest.mark.long
@pytest.mark.parametrize("strike", [drain, kill_core])
async def test_answers_go_on_at_another_verifier_and_are_the_same(
    directory: Path, strike: Strike
) -> None:
    options = (*ENGINE, "--model", str(directory), *AT_ONCE)
    async with World(Plan(verifier_options=options, folder=FOLDER / "vllm")) as world:
        undisturbed = await ask_again(world)

        answers, _ = await struck(world, strike)

        assert {answer.outcome for answer in undisturbed.values()} <= ENDS
        assert {kind: _rounded(answer) for kind, answer in answers.items()} == {
            kind: _rounded(answer) for kind, answer in undisturbed.items()
        }
        assert sum((await world.edge.gauge(world.http, REOPENED)).values()) >= 1
