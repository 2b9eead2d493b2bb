"""What the plugin does to vLLM's server, with fakes in the place of its engine and its app."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.drain import Drain
from gateway.json_bounds import SMALL_BYTES
from gateway.keys import KeyLimits
from gateway.metrics import Metrics
from gateway.request_body import RequestBody
from gateway.request_context import RequestContext, TokenTimes, Usage
from gateway.tenant_limits import Tenant, TenantMetrics

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _vllm() -> None:
    pytest.importorskip("vllm")


def of(module: str) -> Any:
    """A module of the plugin, which imports vLLM."""
    return import_module(f"verifier.vllm_target.serving.{module}")


def context(**limits: int) -> RequestContext:
    registry = CollectorRegistry()
    tenant = Tenant("ann", KeyLimits(**limits), TenantMetrics(registry))
    times = TokenTimes(time.monotonic, time.monotonic())
    return RequestContext("r", Usage(Metrics(registry), times), tenant)


def scope(path: str = "/v1/completions", **more: object) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": [], **more}


async def asked(app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    await app(scope, receive, send)
    return sent


class Failing:
    """A service whose self-test fails."""

    def __init__(self, *_: object) -> None:
        async def load() -> str:
            return "self-test: with wrong drafts [2], without [1]"

        self.host = SimpleNamespace(load=load)


async def test_a_failed_self_test_ends_vllm_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of("endpoints"), "check_free", lambda *_, **__: None)
    monkeypatch.setattr(of("endpoints"), "VllmService", Failing)
    plugin = of("endpoints").Endpoints()
    plugin._app, plugin._drain = None, Drain()

    with pytest.raises(SystemExit, match="self-test: with wrong drafts"):
        await plugin.init_state(None, None, Namespace(api_server_count=None))


async def test_a_port_that_is_taken_ends_vllm_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PICOSPEC_VERIFIER__PORT", str(port))

        with pytest.raises(SystemExit, match=f"settings: .*{port}"):
            await (
                of("endpoints")
                .Endpoints()
                .init_state(None, None, Namespace(api_server_count=None))
            )


async def test_a_request_that_our_keys_let_in_gets_vllms_key() -> None:
    seen: list[Any] = []

    async def vllm(scope: Any, receive: object, send: object) -> None:
        seen.append(scope)

    headers = [(b"authorization", b"Bearer ours"), (b"host", b"h")]
    ours = scope("/docs", headers=headers, app=1)

    for key in ("theirs", None):
        bodies = of("bodies").Bodies(512, takes_media=False)
        await asked(partial(of("service")._pass_on, vllm, bodies, key), ours)

    assert seen[0]["headers"] == [(b"host", b"h"), (b"authorization", b"Bearer theirs")]
    assert seen[1]["headers"] == ours["headers"]
    assert not any("app" in each for each in seen)


@pytest.mark.parametrize("size", [1, SMALL_BYTES])
async def test_no_field_of_an_operator_reaches_vllm(size: int) -> None:
    given, text = scope(state={"context": context()}), b"a" * size

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"priority":1,"prompt":"%b"}' % text}

    read = RequestBody(given, receive, 1 << 20).admitted()  # type: ignore[arg-type]
    again = await of("bodies").Bodies(1 << 20, takes_media=False).taken(given, read)

    assert (await again())["body"] == b'{"prompt":"%b"}' % text


async def test_our_port_passes_on_nothing_that_changes_the_server() -> None:
    async def vllm(scope: Any, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def taken(scope: Any, receive: Any) -> Any:
        return receive

    app = partial(of("service")._pass_on, vllm, SimpleNamespace(taken=taken), None)
    client_paths = "/v1/completions", "/v1/models", "/v2/rerank", "/tokenize", "/metrics"
    others = (
        "/sleep", "/scale_elastic_ep", "/load", "/v1/load_lora_adapter", "/v1", "/metrics/x",
        "/v1/unload_lora_adapter", "/tokenize/../sleep", "//sleep", "/reset_prefix_cache",
    )  # fmt: skip
    found = {
        path: (await asked(app, scope(path)))[0]["status"] for path in (*client_paths, *others)
    }

    assert found == dict.fromkeys(client_paths, 200) | dict.fromkeys(others, 404)


async def test_our_apps_see_paths_without_vllms_root_path() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: object, send: object) -> None:
        seen.append((scope["path"], scope["root_path"]))

    for path in ("/vllm/v1/speculate/name", "/v1/speculate/name"):
        await asked(partial(of("service")._serve, app, "/vllm"), scope(path, root_path="/vllm"))

    assert seen == [("/v1/speculate/name", "")] * 2


async def test_while_the_service_drains_vllms_routes_take_no_request() -> None:
    drain = Drain()
    drain.begin(60.0)
    app = of("plain").PlainRequests(None, drain)

    sent = await asked(app, scope())

    assert sent[0]["status"] == 503


async def test_a_key_without_answers_left_is_turned_away_from_vllms_routes() -> None:
    paying = context(sessions=1)
    paying.begin_answers(1)
    app = of("plain").PlainRequests(None, Drain())

    sent = await asked(app, scope(state={"context": paying}))

    assert (sent[0]["status"], paying.outcome.error) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize("kind", ["DELTA", "CUMULATIVE", "FINAL_ONLY"])
async def test_what_vllm_generates_is_charged_to_whoever_asked(kind: str) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    steps = {"DELTA": (1, 2), "CUMULATIVE": (1, 3), "FINAL_ONLY": (3,)}[kind]
    salts: list[Any] = []

    async def generate(prompt: Any, *_: object, **__: object) -> AsyncGenerator[Any]:
        salts.append(prompt.get("cache_salt"))
        for count in steps:
            made = partial(SimpleNamespace, token_ids=[7] * count)
            reason = "length" if count == steps[-1] else None
            choices = [made(index=i, finish_reason=reason) for i in range(2)]
            yield SimpleNamespace(prompt_token_ids=[1] * 5, outputs=choices)

    v1 = SimpleNamespace(use_v2_model_runner=False)
    llm: Any = SimpleNamespace(generate=generate, vllm_config=v1)
    of("plain").charge(llm, None, "m", max_choices=2, share_prefixes=False)
    params = SamplingParams(output_kind=RequestOutputKind[kind], n=2)

    async def vllm(*_: object) -> None:
        for prompt in ({"type": "token"}, {"type": "token", "cache_salt": "x"}):
            async for _ in llm.generate(prompt, params, request_id="r"):
                pass

    paying = context()
    for state in ({"context": paying}, {}):
        await asked(of("plain").PlainRequests(vllm, Drain()), scope(state=state))

    assert (paying.usage.prompt_tokens, paying.usage.completion_tokens) == (5, 12)
    assert paying.usage.endings == ["length"] * 4
    ours, with_salt, *others = salts
    assert ours == "ann"
    assert with_salt not in ("x", "ann")
    assert others == [None, "x"]
    with pytest.raises(VLLMValidationError, match="needs Model Runner V2"):
        await anext(llm.generate({}, SamplingParams(logprobs=1, logprob_token_ids=[5])))
