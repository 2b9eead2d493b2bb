"""A session goes to the engine core with the least to do, and its messages to that one."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from picospec.verifier.vllm_target.crossing import PUSH
from picospec.verifier.vllm_target.serving.ranks import UTILITY, Ranks


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


def test_a_call_is_what_vllm_takes_for_one() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreRequestType

    assert EngineCoreRequestType.UTILITY.value == UTILITY
