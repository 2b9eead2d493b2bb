"""Deltas become what a client sees, token by token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from gateway.errors import EngineFault
from gateway.ports import Delta, TokenLogprob
from gateway.reading import Reader, Said, speak

END = 256


def reader(stops: Sequence[str] = ()) -> Reader:
    return Reader(
        lambda token: bytes([token]) if token < END else b"",
        stop_tokens=frozenset({END}),
        stops=stops,
    )


def delta(data: bytes) -> Delta:
    return Delta(tuple(data), tuple(TokenLogprob(-1.0, ((b, -1.0),)) for b in data))


async def gather(voice: AsyncGenerator[Said]) -> list[Said]:
    return [said async for said in voice]


def test_a_stop_token_is_counted_and_not_shown() -> None:
    said = reader().read(Delta((ord("a"), END), finish="stop"))

    assert (said.text, said.tokens, said.finish) == ("a", 2, "stop")


def test_a_stop_string_ends_the_choice_though_the_engine_ran_out_of_room() -> None:
    said = reader(["b"]).read(Delta(tuple(b"abc"), finish="length"))

    assert (said.text, said.tokens, said.finish) == ("a", 2, "stop")


def test_log_probabilities_wait_for_the_text_of_their_token() -> None:
    reading = reader(["stop"])

    first = reading.read(delta(b"a st"))
    second = reading.read(delta(b"\xc3"))
    third = reading.read(delta(b"\xa9"))

    assert [entry.piece for entry in first.entries] == [b"a", b" "]
    assert [entry.piece for entry in second.entries] == []
    assert [(entry.piece, entry.offset) for entry in third.entries] == [
        (b"s", 2),
        (b"t", 3),
        (b"\xc3", 4),
        (b"\xa9", 4),
    ]


def test_log_probabilities_of_a_stop_string_are_never_shown() -> None:
    reading = reader(["st"])

    said = [reading.read(delta(b"as")), reading.read(delta(b"ty"))]

    assert [entry.piece for part in said for entry in part.entries] == [b"a"]
    assert said[1].finish == "stop"


def test_log_probabilities_for_some_tokens_only_are_the_engines_fault() -> None:
    lame = Delta((1, 2), (TokenLogprob(-1.0, ()),))

    with pytest.raises(EngineFault):
        reader().read(lame)


async def test_a_stop_string_closes_the_engine_before_the_last_word_is_said() -> None:
    events: list[str] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield delta(b"ab")
            yield delta(b"cd")
            events.append("went on")
        finally:
            events.append("closed")

    async for said in speak(engine(), reader(["c"])):
        events.append(said.text)

    assert events == ["ab", "closed", ""]


async def test_an_engine_that_ends_without_saying_why_is_at_fault() -> None:
    async def engine() -> AsyncGenerator[Delta]:
        yield delta(b"ab")

    with pytest.raises(EngineFault, match="without saying why"):
        await gather(speak(engine(), reader()))
