"""Our parts of vLLM's API server are tried with fakes for its engine and its app.

They are our end of the engine, and what the plugin does to the server.
"""

from __future__ import annotations

import asyncio
import socket
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from speculation.errors import RemoteProtocolError
from speculation.messages import CachedPromptTokens
from tests.guards import GUARD_S
from verifier.target import TargetFailed
from verifier.vllm_target.core.slot import OutgoingFrame
from verifier.vllm_target.ipc_messages import FIELD, PUSH, Batch
from verifier.vllm_target.packing import packed
from verifier.vllm_target.serving.ranks import MAX_IN_FLIGHT, UTILITY, CoreChannel, Ranks


def vllm(test: Any) -> Any:
    """Mark a test that imports vLLM."""
    for mark in (pytest.mark.vllm, pytest.mark.filterwarnings("default")):
        test = mark(test)
    return pytest.mark.usefixtures("installed")(test)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("vllm.v1.engine.async_llm")  # its warnings are not ours


# A session goes to the core with the least to do, and its messages to that one.


@dataclass
class Client:
    """vLLM's connection to its engine cores."""

    core_engines: list[bytes]
    client_index: int = 0
    client_count: int = 1
    lb_engines: list[list[float]] | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    encoder = SimpleNamespace(encode=lambda call: call)

    def _send_input_message(
        self, message: tuple[Any, ...], engine: bytes
    ) -> asyncio.Future[object]:
        self.calls.append((engine, *message))
        return asyncio.get_running_loop().create_future()

    async def _call_utility_async(self, *call: object, engine: bytes) -> bytes:
        self.calls.append((engine, *call))
        return engine


def placed(ranks: Ranks, stack: ExitStack, count: int) -> list[int]:
    return [stack.enter_context(ranks.placed(f"s{i}")) for i in range(count)]


def test_sessions_are_spread_and_leave_room_when_they_end() -> None:
    ranks = Ranks(Client([b"0", b"1", b"2"]))  # type: ignore[arg-type]
    with ExitStack() as stack:
        with ranks.placed("first") as first:
            assert (first, *placed(ranks, stack, 4)) == (0, 1, 2, 0, 1)
        with ranks.placed("next") as rank, ranks.placed("last") as last:
            assert (rank, last) == (0, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"client_index": 1, "client_count": 2}, [1, 0, 1]),
        ({"lb_engines": [[3.0, 4.0, 0.9], [0.0, 2.0, 0.1]]}, [1] * 7 + [0]),
    ],
    ids=["an API server begins where others do not", "what others ask of a core counts"],
)
def test_sessions_of_several_api_servers_are_spread(
    given: dict[str, Any], expected: list[int]
) -> None:
    with ExitStack() as stack:
        ranks = Ranks(Client([b"0", b"1"], **given))  # type: ignore[arg-type]
        assert placed(ranks, stack, len(expected)) == expected


async def test_a_message_goes_to_the_core_of_its_session_alone() -> None:
    client = Client([b"0", b"1"])
    ranks = Ranks(client)  # type: ignore[arg-type]
    with ranks.placed("a"), ranks.placed("b"):
        await ranks.push("b", b"frames")
        await asyncio.sleep(0)
    await ranks.push("b", b"late")
    await asyncio.sleep(0)
    assert client.calls == [(b"1", UTILITY, 0, 0, PUSH, [[("b", b"frames")]])]

    assert await ranks.call_all("figures") == [b"0", b"1"]


# Messages on their way into the engine: sent at once, in order, and never too many.


class Core:
    """Takes messages in, and reads them when asked to."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.step = asyncio.Event()
        self.broken: Exception | None = None
        self.channel = CoreChannel(self.send, self.read)

    async def send(self, batch: Batch) -> None:
        if self.broken:
            raise self.broken
        self.batches.append(batch)

    async def read(self) -> None:
        await self.step.wait()

    async def push(self, session: str, count: int) -> None:
        for _ in range(count):
            await self.channel.push(session, b"frames")


async def test_the_messages_of_one_turn_are_sent_at_once_and_in_order() -> None:
    core = Core()

    for session, frames in [("a", b"1"), ("b", b"2"), ("a", b"3")]:
        await core.channel.push(session, frames)
    assert core.batches == []
    await asyncio.sleep(0.01)
    await core.channel.push("b", b"4")
    await asyncio.sleep(0.01)

    assert core.batches == [[("a", b"1"), ("b", b"2"), ("a", b"3")], [("b", b"4")]]


async def test_too_many_messages_within_a_step_wait_for_it() -> None:
    core = Core()
    await core.push("a", MAX_IN_FLIGHT)

    one_more = asyncio.create_task(core.push("a", 1))
    await core.push("b", 1)  # another session does not wait
    await asyncio.sleep(0.01)
    assert sum(map(len, core.batches)) == MAX_IN_FLIGHT + 1

    core.step.set()
    await one_more
    await core.push("a", 5 * MAX_IN_FLIGHT)
    assert sum(map(len, core.batches)) > 5 * MAX_IN_FLIGHT


async def test_a_session_that_fills_up_while_an_answer_is_awaited_gets_another() -> None:
    core = Core()
    await core.push("b", MAX_IN_FLIGHT // 2)
    await asyncio.sleep(0.01)

    filling = asyncio.create_task(core.push("a", MAX_IN_FLIGHT + 1))
    await asyncio.sleep(0.01)
    core.step.set()

    async with asyncio.timeout(GUARD_S):
        await filling


async def test_a_session_that_ends_leaves_nothing_behind() -> None:
    core = Core()
    await core.push("a", MAX_IN_FLIGHT)
    waiting = asyncio.create_task(core.push("a", 1))
    await asyncio.sleep(0.01)

    core.channel.forget("a")

    async with asyncio.timeout(GUARD_S):
        await waiting


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_engine_that_breaks_is_no_fault_of_the_edges(at_once: bool) -> None:
    core = Core()
    core.broken = OSError("the core is gone")
    if at_once:

        def send(batch: Batch) -> asyncio.Future[object]:
            raise OSError("the core is gone")

        core.channel = CoreChannel(send, core.read)
    await core.push("a", 1)
    await asyncio.sleep(0.01)

    with pytest.raises(TargetFailed, match="the core is gone"):
        await core.push("a", 1)
    core.channel.forget("a")
    await core.push("a", 1)


# What a session's core sends reaches its reader once and in order, however slow that is.


ASKED = {"max_tokens": 9, "structured_outputs": None}


def output(session: str, *frames: bytes, error: str | None = None) -> Any:
    multiplexed = {FIELD: [session, [(frame, 0, 0) for frame in frames], error], "theirs": 1}
    return SimpleNamespace(kv_transfer_params=multiplexed, request_id=session, finished=False)


class Llm(SimpleNamespace):
    """An engine whose reader sees one output for each batch of the core's."""

    def __init__(self, *batches: list[Any]) -> None:
        self._batches = batches
        queue = SimpleNamespace(put=lambda output: None)
        state = SimpleNamespace(is_prefilling=True, num_cached_tokens=0, queue=queue)
        original = SimpleNamespace(
            process_outputs=lambda outputs: len(outputs), request_states={"s": state}
        )
        core = SimpleNamespace(core_engines=[b"0"], client_count=1, client_index=0)
        super().__init__(output_processor=original, engine_core=core)

    async def generate(self, *args: object, **kwargs: object) -> AsyncGenerator[object]:
        for batch in self._batches:
            assert self.output_processor.process_outputs(batch) == len(batch)
            yield SimpleNamespace(num_cached_tokens=0)
            await asyncio.sleep(0)


def reader(llm: Any) -> Any:
    """Return our end of vLLM's engine."""
    from verifier.vllm_target.serving.engine import VllmEngine

    return VllmEngine(llm)


async def read(llm: Any, session: str = "s") -> list[bytes]:
    frames = list[OutgoingFrame]()
    await reader(llm).generate(session, (1,), ASKED, frames.append)
    return [each.frame for each in frames]


@vllm
async def test_outputs_that_vllm_merges_lose_no_frame() -> None:
    """Frames of a session that nobody reads here are dropped."""
    plain = SimpleNamespace(kv_transfer_params=None, request_id="theirs")
    others = [plain, output("t", b"x")]
    llm = Llm([output("s", b"a"), *others, output("s", b"b", b"c")], [], [output("s", b"d")])

    assert await read(llm) == [b"a", b"b", b"c", b"d"]


@vllm
async def test_what_was_cached_is_said_first_and_a_reader_that_fails_loses_its_session() -> (
    None
):
    frames = list[bytes]()

    def take(frame: OutgoingFrame) -> None:
        frames.append(frame.frame)
        if frame.frame == b"b":
            raise ZeroDivisionError

    llm = Llm([output("s", b"a")], [output("s", b"b", b"c")])
    llm.output_processor.request_states["s"].num_cached_tokens = 7
    with pytest.raises(TargetFailed) as failed:
        await reader(llm).generate("s", (1,), ASKED, take)

    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    assert frames == [packed(CachedPromptTokens(7)), b"a", b"b"]


@vllm
async def test_vllm_counts_what_only_carries_frames_and_processes_the_rest() -> None:
    llm, taken = Llm(), list[OutgoingFrame]()
    state = SimpleNamespace(is_prefilling=True, num_cached_tokens=0)
    processed: list[Any] = []
    counted: list[Any] = []
    llm.output_processor = SimpleNamespace(
        request_states={"s": state},
        process_outputs=lambda outputs, *_, **__: processed.extend(outputs),
        _update_stats_from_output=lambda *call: counted.append(call),
    )
    engine = reader(llm)
    from verifier.vllm_target.serving.engine import _Reader

    engine._readers["s"] = _Reader(taken.append)
    first, silent, second, third, last = (
        output("s", *frames) for frames in ([b"a"], [], [b"b"], [b"c"], [b"d"])
    )
    last.finished = True

    llm.output_processor.process_outputs([first], 1.5, None)
    state.is_prefilling = False
    llm.output_processor.process_outputs([silent], 1.5, None)
    llm.output_processor.process_outputs([second, third], 1.5, None)
    llm.output_processor.process_outputs([last], 1.5, None)

    assert [each.frame for each in taken] == [b"a", b"b", b"c", b"d"]
    assert processed == [first, last]
    assert counted == [(state, each, 1.5, None) for each in (silent, second, third)]


@vllm
async def test_a_complaint_ends_the_session_as_its_edges_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="not a token"):
        await read(Llm([output("s", error="Draft.tokens: not a token")]))


@vllm
async def test_a_name_that_is_taken_leaves_the_session_that_has_it_alone() -> None:
    engine = reader(Llm([output("s", b"a")], [output("s", b"b")]))
    frames = list[OutgoingFrame]()
    first = asyncio.create_task(engine.generate("s", (1,), ASKED, frames.append))
    await asyncio.sleep(0)

    with pytest.raises(RemoteProtocolError, match="this name"):
        await engine.generate("s", (1,), ASKED, frames.append)

    await first
    assert [each.frame for each in frames] == [b"a", b"b"]


# What the plugin does to the server.


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


@vllm
async def test_a_failed_self_test_ends_vllm_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of("endpoints"), "check_free", lambda *_, **__: None)
    monkeypatch.setattr(of("endpoints"), "VllmService", Failing)
    plugin = of("endpoints").Endpoints()
    plugin._app, plugin._drain = None, Drain()

    with pytest.raises(SystemExit, match="self-test: with wrong drafts"):
        await plugin.init_state(None, None, Namespace(api_server_count=None))


@vllm
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


@vllm
@pytest.mark.parametrize("size", [1, SMALL_BYTES])
async def test_no_field_of_an_operator_reaches_vllm(size: int) -> None:
    given, text = scope(state={"context": context()}), b"a" * size

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"priority":1,"prompt":"%b"}' % text}

    read = RequestBody(given, receive, 1 << 20).admitted()  # type: ignore[arg-type]
    again = await of("bodies").Bodies(1 << 20, takes_media=False).taken(given, read)

    assert (await again())["body"] == b'{"prompt":"%b"}' % text


@vllm
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


@vllm
async def test_our_apps_see_paths_without_vllms_root_path() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: object, send: object) -> None:
        seen.append((scope["path"], scope["root_path"]))

    for path in ("/vllm/v1/speculate/name", "/v1/speculate/name"):
        await asked(partial(of("service")._serve, app, "/vllm"), scope(path, root_path="/vllm"))

    assert seen == [("/v1/speculate/name", "")] * 2


@vllm
async def test_a_key_without_answers_left_is_turned_away_from_vllms_routes() -> None:
    paying = context(sessions=1)
    paying.begin_answers(1)
    app = of("plain").PlainRequests(None, Drain())

    sent = await asked(app, scope(state={"context": paying}))

    assert (sent[0]["status"], paying.outcome.error) == (429, "rate_limit_exceeded")


@vllm
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
