"""A steady stream is passed on at the pace it is made, whole, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from picospec.gateway.errors import EngineFault
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.stream import ChoiceStream, Steady, singly, together
from picospec.gateway.ports import Delta
from tests.gateway.steady.virtual_time import run

PASS_S = 0.4
FINISH = TextDelta("", 0, finish="stop")
Shown = list[tuple[float, str]]


async def choice(
    bursts: Sequence[str], end: Exception | None = None, index: int = 0
) -> ChoiceStream:
    """Yield bursts of characters, a pass apart."""
    for burst in bursts:
        await asyncio.sleep(PASS_S)
        for character in burst:
            yield index, TextDelta(character, 1)
    if end is not None:
        raise end
    yield index, FINISH


async def show(*streams: ChoiceStream, into: list[Shown], steady: Steady) -> None:
    """Note what comes of each stream, and when (s)."""
    clock = asyncio.get_running_loop().time

    async with together(streams, steady.paced) as deltas:
        async for index, delta in deltas:
            if delta is not FINISH:
                into[index].append((pytest.approx(clock()), delta.text))


def test_a_burst_is_spread_over_a_pass_and_the_end_waits_for_nothing() -> None:
    shown: Shown = []

    run(show(choice(["a", "bcde", "fg", "hijk"]), into=[shown], steady=Steady()))

    assert shown == [
        (0.4, "a"),
        (0.8, "b"), (0.9, "c"), (1.0, "d"), (1.1, "e"),
        (1.2, "f"), (1.4, "g"),
        (1.6, "h"), (1.6, "i"), (1.6, "j"), (1.6, "k"),
    ]  # fmt: skip


def test_each_choice_has_a_pace_of_its_own() -> None:
    shown: list[Shown] = [[], []]

    streams = choice(["a", "bc", "d"]), choice(["x", "y", "z"], index=1)
    run(show(*streams, into=shown, steady=Steady()))

    assert shown[0] == [(0.4, "a"), (0.8, "b"), (1.0, "c"), (1.2, "d")]
    assert shown[1] == [(0.4, "x"), (0.8, "y"), (1.2, "z")]


def test_the_first_burst_of_a_choice_has_the_pace_of_the_last_choice() -> None:
    steady = Steady()
    shown: Shown = []

    run(show(choice(["a", "b", "c"]), into=[[]], steady=steady))
    run(show(choice(["vwxy", "z"]), into=[shown], steady=steady))

    assert shown == [(0.4, "v"), (0.5, "w"), (0.6, "x"), (0.7, "y"), (0.8, "z")]


def test_an_error_comes_at_once_and_after_all_that_came_before_it() -> None:
    shown: Shown = []

    with pytest.raises(EngineFault, match="broken"):
        run(show(choice(["a", "bcd"], EngineFault("broken")), into=[shown], steady=Steady()))

    assert shown == [(0.4, "a"), (0.8, "b"), (0.8, "c"), (0.8, "d")]


def test_cancelling_closes_the_stream_while_tokens_are_held() -> None:
    closed: list[float] = []
    shown: Shown = []

    async def watched() -> ChoiceStream:
        try:
            async with aclosing(choice(["a", "bcde", "f"])) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            closed.append(asyncio.get_running_loop().time())

    async def left() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.95):
                await show(watched(), into=[shown], steady=Steady())

    run(left())

    assert closed == [0.95]
    assert shown == [(0.4, "a"), (0.8, "b"), (0.9, "c")]


async def test_a_delta_is_read_token_by_token_and_closing_closes_the_engine() -> None:
    closed: list[bool] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield Delta((1, 2), origins=("draft", "target"))
            yield Delta((3,), finish="stop")
        finally:
            closed.append(True)

    async with aclosing(singly(engine())) as deltas:
        first, second = await anext(deltas), await anext(deltas)

    assert (first.tokens, first.origins) == ((1,), ("draft",))
    assert (second.tokens, second.origins) == ((2,), ("target",))
    assert closed == [True]
