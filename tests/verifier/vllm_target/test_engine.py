"""Our end of vLLM's engine: a session goes to the core with the least to do, its messages to
that one at once and in order, and what the core sends to its reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from speculation.errors import RemoteProtocolError
from speculation.messages import CachedPromptTokens
from tests.guards import GUARD_S
from verifier.target import TargetFailed
from verifier.vllm_target.core.slot import OutgoingFrame
from verifier.vllm_target.ipc_messages import FIELD, PUSH, Batch
from verifier.vllm_target.packing import packed
from verifier.vllm_target.serving.ranks import MAX_IN_FLIGHT, UTILITY, CoreChannel, Ranks


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


def test_an_api_server_begins_where_others_do_not() -> None:
    with ExitStack() as stack:
        second = Ranks(Client([b"0", b"1"], client_index=1, client_count=2))  # type: ignore[arg-type]
        assert placed(second, stack, 3) == [1, 0, 1]


def test_what_others_ask_of_a_core_counts() -> None:
    busy = [[3.0, 4.0, 0.9], [0.0, 2.0, 0.1]]
    with ExitStack() as stack:
        ranks = Ranks(Client([b"0", b"1"], lb_engines=busy))  # type: ignore[arg-type]
        assert placed(ranks, stack, 8) == [1] * 7 + [0]


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


@pytest.mark.vllm
def test_a_call_is_what_vllm_takes_for_one() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreRequestType

    assert EngineCoreRequestType.UTILITY.value == UTILITY


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
    pytest.importorskip("vllm.v1.engine.async_llm")  # its warnings are not ours
    from verifier.vllm_target.serving.engine import VllmEngine

    return VllmEngine(llm)


async def read(llm: Any, session: str = "s") -> list[bytes]:
    frames = list[OutgoingFrame]()
    await reader(llm).generate(session, (1,), ASKED, frames.append)
    return [each.frame for each in frames]


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_outputs_that_vllm_merges_lose_no_frame() -> None:
    others = SimpleNamespace(kv_transfer_params=None, request_id="theirs")
    llm = Llm([output("s", b"a"), others, output("s", b"b", b"c")], [], [output("s", b"d")])

    assert await read(llm) == [b"a", b"b", b"c", b"d"]


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
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


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
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


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_frames_of_a_session_that_nobody_reads_here_are_dropped() -> None:
    assert await read(Llm([output("t", b"a"), output("s", b"b")])) == [b"b"]


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_complaint_ends_the_session_as_its_edges_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="not a token"):
        await read(Llm([output("s", error="Draft.tokens: not a token")]))


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_name_that_is_taken_leaves_the_session_that_has_it_alone() -> None:
    engine = reader(Llm([output("s", b"a")], [output("s", b"b")]))
    frames = list[OutgoingFrame]()
    first = asyncio.create_task(engine.generate("s", (1,), ASKED, frames.append))
    await asyncio.sleep(0)

    with pytest.raises(RemoteProtocolError, match="this name"):
        await engine.generate("s", (1,), ASKED, frames.append)

    await first
    assert [each.frame for each in frames] == [b"a", b"b"]
