"""Choices stream concurrently; nothing is left running, and none runs ahead of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import count, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientGone, EngineFault
from gateway.http import connected
from gateway.output.detokenise import Detokeniser, StopConditions, StopStrings, TextDelta
from gateway.output.stream import (
    QUEUED,
    ChoiceStream,
    stream_choice,
    together,
)
from gateway.ports import Delta
from speculation.messages import TokenLogprob
from tests.gateway.output.reading import split


def detokeniser(stop: str) -> Detokeniser:
    return Detokeniser(lambda token: bytes([token]), StopConditions(strings=[stop]))


async def test_a_stop_string_closes_the_engine_before_the_last_text() -> None:
    events: list[str] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield Delta(tuple(b"ab"))
            yield Delta(tuple(b"cd"))
            events.append("went on")
        finally:
            events.append("closed")

    async for _, delta in stream_choice(0, engine(), detokeniser("c")):
        events.append(delta.text)

    assert events == ["ab", "closed", ""]


async def test_an_engine_that_ends_without_a_finish_is_at_fault() -> None:
    async def engine() -> AsyncGenerator[Delta]:
        yield Delta(tuple(b"ab"))

    with pytest.raises(EngineFault, match="without saying why"):
        [delta async for delta in stream_choice(0, engine(), detokeniser("c"))]


async def stream(
    texts: Iterable[str],
    index: int = 0,
    *,
    then: Exception | None = None,
    closed: list[int] | None = None,
) -> ChoiceStream:
    """Yield texts, one a turn of the loop, and then a finish or an error."""
    try:
        for text in texts:
            yield index, TextDelta(text, 1)
            await asyncio.sleep(0)
        if then is not None:
            raise then
        yield index, TextDelta("", 0, finish="stop")
    finally:
        if closed is not None:
            await asyncio.sleep(0)  # as the end of a session does
            closed.append(index)


async def test_every_stream_is_emitted_in_its_own_order() -> None:
    async with together([stream("abc"), stream("xy", 1)]) as deltas:
        emitted = [(index, delta.text) async for index, delta in deltas]

    assert [text for index, text in emitted if index == 0] == ["a", "b", "c", ""]
    assert [text for index, text in emitted if index == 1] == ["x", "y", ""]
    assert emitted[:2] == [(0, "a"), (1, "x")]


@pytest.mark.parametrize(("choices", "most"), [(1, 1), (3, QUEUED + 4)])
async def test_a_slow_client_slows_the_streams_down(choices: int, most: int) -> None:
    generated = count()
    streams = [stream(map(str, generated)) for _ in range(choices)]

    async def stall() -> None:
        async with together(streams) as deltas:
            async for _ in deltas:
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stall(), 0.05)

    assert next(generated) <= most


@pytest.mark.parametrize("choices", [1, 2])
async def test_whoever_leaves_has_closed_all_streams(choices: int) -> None:
    closed: list[int] = []
    streams = [stream(repeat("a"), index, closed=closed) for index in range(choices)]

    async with together(streams) as deltas:
        await anext(deltas)

    assert sorted(closed) == list(range(choices))
    assert len(asyncio.all_tasks()) == 1


async def test_the_first_error_closes_all_streams_and_is_raised_as_itself() -> None:
    closed: list[int] = []
    streams = [stream(repeat("a"), closed=closed), stream("b", 1, then=EngineFault("broken"))]

    with pytest.raises(EngineFault, match="broken"):
        async with together(streams) as deltas:
            [delta async for delta in deltas]

    assert closed == [0]
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_comes_after_all_that_its_stream_showed_to_a_slow_client() -> None:
    emitted = ["", ""]
    streams = [stream("abc", index, then=EngineFault("lost")) for index in range(2)]

    async def read_slowly() -> None:
        async with together(streams) as deltas:
            async for index, delta in deltas:
                for _ in range(3):
                    await asyncio.sleep(0)
                emitted[index] += delta.text

    with pytest.raises(EngineFault, match="lost"):
        await read_slowly()

    assert "abc" in emitted


async def test_work_is_cancelled_when_the_client_disconnects() -> None:
    ended = asyncio.Event()

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientGone):
        async with asyncio.timeout(1), connected(receive):
            await work()

    assert ended.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_work_that_ends_first_leaves_nothing_behind() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async with connected(receive):
        await asyncio.sleep(0)

    assert len(asyncio.all_tasks()) == 1


# Any split of tokens shows the same text: never a stop string, never part of a character.

END, EXCLAIMED = 256, 257
STOPPING_PIECES = {END: b"", EXCLAIMED: b"!"}
LETTERS = st.text(alphabet="abé€😀", max_size=24)
CUTS = st.lists(st.integers(0, 99))
STOPS = st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=4)


def detokenise_detokeniser(
    stops: Sequence[str] = (), *, include_stop: bool = False, min_tokens: int = 0
) -> Detokeniser:
    return Detokeniser(
        lambda token: bytes([token]) if token < END else STOPPING_PIECES[token],
        StopConditions(frozenset(STOPPING_PIECES), stops, min_tokens, include_stop),
    )


def delta(data: bytes) -> Delta:
    return Delta(tuple(data), tuple(TokenLogprob(-1.0, ((b, -1.0),)) for b in data))


def test_a_stop_token_is_counted_and_not_shown() -> None:
    read = detokenise_detokeniser().read(Delta((ord("a"), END), finish="stop"))

    assert (read.text, read.tokens, read.finish) == ("a", 2, "stop")


@pytest.mark.parametrize(
    ("min_tokens", "text"),
    [(0, "a"), (2, "a"), (3, "abcxa"), (6, "abcxa"), (7, "abcxabca"), (10, "abcxabcabc")],
)
def test_a_stop_string_within_the_least_tokens_ends_nothing(min_tokens: int, text: str) -> None:
    tokens = tuple(b"abcxabcabc")
    whole, split = (detokenise_detokeniser(["bc"], min_tokens=min_tokens) for _ in range(2))

    read = whole.read(Delta(tokens, finish="length"))
    pieces = [split.read(Delta((token,))).text for token in tokens[: read.tokens]]

    assert read.text == "".join(pieces) == text


def test_log_probabilities_wait_for_the_text_of_their_token() -> None:
    choice = detokenise_detokeniser(["stop"])

    read = [choice.read(delta(data)).entries for data in (b"a st", b"\xc3", b"\xa9")]

    assert [[(entry.piece, entry.offset) for entry in entries] for entries in read] == [
        [(b"a", 0), (b" ", 1)],
        [],
        [(b"s", 2), (b"t", 3), (b"\xc3", 4), (b"\xa9", 4)],
    ]


def test_log_probabilities_of_a_stop_string_are_never_shown() -> None:
    choice = detokenise_detokeniser(["st"])

    read = [choice.read(delta(b"as")), choice.read(delta(b"ty"))]

    assert [entry.piece for part in read for entry in part.entries] == [b"a"]
    assert read[1].finish == "stop"


def test_log_probabilities_for_some_tokens_only_are_the_engines_fault() -> None:
    incomplete = Delta((1, 2), (TokenLogprob(-1.0, ()),))

    with pytest.raises(EngineFault):
        detokenise_detokeniser().read(incomplete)


def read(
    chunks: Sequence[bytes], stops: Sequence[str], *, include_stop: bool = False
) -> tuple[list[str], int]:
    """Return the shown texts and the counted tokens; tokens are bytes, `chunks` groups them."""
    choice = detokenise_detokeniser(stops, include_stop=include_stop)
    shown, tokens = [], 0
    for chunk in [*chunks, None]:
        delta = Delta((), finish="length") if chunk is None else Delta(tuple(chunk))
        read_now = choice.read(delta)
        shown.append(read_now.text)
        tokens += read_now.tokens
        if read_now.finish is not None:
            break
    return shown, tokens


def first_stop(text: str, stops: Sequence[str], *, include_stop: bool = False) -> str:
    """Cut at the stop string that is complete first, by trying every end."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include_stop else min(starts)]
    return text


@given(st.binary(max_size=24), CUTS, STOPS)
def test_any_grouping_of_tokens_gives_the_same_text_and_usage(
    data: bytes, cuts: list[int], stops: list[str]
) -> None:
    shown, tokens = read(split(data, cuts), stops)
    whole, whole_tokens = read([data], stops)

    assert "".join(shown) == "".join(whole)
    assert tokens == whole_tokens


@given(LETTERS, CUTS, STOPS, st.booleans())
def test_the_text_ends_at_the_stop_string_that_is_complete_first(
    text: str, cuts: list[int], stops: list[str], include_stop: bool
) -> None:
    shown, _ = read(split(text.encode(), cuts), stops, include_stop=include_stop)

    assert "".join(shown) == first_stop(text, stops, include_stop=include_stop)


@given(LETTERS, STOPS)
def test_the_stop_string_that_ended_the_text_is_told(text: str, stops: list[str]) -> None:
    read_now = detokenise_detokeniser(stops).read(Delta(tuple(text.encode()), finish="length"))

    assert read_now.stop in {None, *stops}
    assert text.startswith(read_now.text + (read_now.stop or ""))
    assert (read_now.stop is None) == (read_now.text == text)
    assert read_now.finish == ("length" if read_now.stop is None else "stop")


@given(st.binary(max_size=24), CUTS)
def test_bytes_that_are_no_text_decode_as_a_whole_would(data: bytes, cuts: list[int]) -> None:
    shown, _ = read(split(data, cuts), ())

    assert "".join(shown) == data.decode("utf-8", "replace")


@given(LETTERS)
def test_without_stop_strings_every_whole_character_is_shown_at_once(text: str) -> None:
    shown, _ = read([character.encode() for character in text], ())

    assert shown == [*text, ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""], include_stop=False)
