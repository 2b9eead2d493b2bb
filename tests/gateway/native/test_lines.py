"""The limits by lines depend on the text and the time, not on how the text comes in pieces."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.llama_server import LineLimits, limited
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.stream import ChoiceStream

PIECES = st.lists(st.text("a \t\n", max_size=4), max_size=12)


def kept(text: str, indent: int) -> str:
    """Return the first line, and those after it up to one that is less indented."""
    first, *lines = text.split("\n")
    shown = [first]
    for at, line in enumerate(lines):
        bare = line.lstrip(" \t")
        is_open = not bare and at == len(lines) - 1
        if len(line) - len(bare) < indent and not is_open:
            break
        shown.append(line)
    return "\n".join(shown)


async def streamed(
    pieces: list[str], limits: LineLimits, seconds: float = 0
) -> list[TextDelta]:
    closed = asyncio.Event()

    async def stream() -> ChoiceStream:
        try:
            for piece in pieces:
                yield 0, TextDelta(piece, 1)
            yield 0, TextDelta("", 1, finish="stop")
        finally:
            closed.set()

    now_s = iter(range(1000))
    clock = lambda: next(now_s) * seconds  # noqa: E731
    deltas = []
    async for _, delta in limited(stream(), limits, clock):
        assert closed.is_set() == (delta.finish is not None)
        deltas.append(delta)
    return deltas


@given(PIECES, st.integers(0, 3))
async def test_the_text_ends_before_the_first_line_that_is_less_indented(
    pieces: list[str], indent: int
) -> None:
    deltas = await streamed(pieces, LineLimits(indent=indent, max_s=0))

    text, whole = "".join(delta.text for delta in deltas), "".join(pieces)
    assert text == kept(whole, indent)
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish == ("stop" if text == whole else "length")


@given(PIECES, st.integers(1, 12))
async def test_when_the_time_is_up_the_text_ends_if_it_has_a_line(
    pieces: list[str], max_s: int
) -> None:
    deltas = await streamed(pieces, LineLimits(indent=0, max_s=max_s), seconds=1)

    late = [i for i in range(len(pieces)) if i > max_s and "\n" in "".join(pieces[: i + 1])]
    shown = pieces[: late[0] + 1] if late else pieces
    assert "".join(delta.text for delta in deltas) == "".join(shown)
    assert deltas[-1].finish == ("length" if late else "stop")
