"""llama-server's and Ollama's clients find what no other door has."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.llama_server import LineLimits, limited
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.stream import ChoiceStream
from tests.gateway.scripted import ScriptedEngine, client_of, make_app


async def test_paths_without_v1_need_a_key_but_those_of_health() -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as stranger:
        statuses = [
            (await stranger.get(path)).status_code
            for path in ("/ping", "/v1/health", "/models", "/props")
        ]

    assert statuses == [200, 200, 401, 401]


async def test_the_root_is_the_page_in_a_browser_and_says_to_others_that_it_runs() -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["k"])) as client:
        page = await client.get("/", headers={"accept": "text/html,application/xhtml+xml"})
        text = await client.get("/", headers={"accept": "application/json"})
        head = await client.head("/")

    assert page.text.startswith("<!doctype html>")
    assert text.text == "Ollama is running"
    assert (head.status_code, head.content) == (200, b"")
    assert {each.headers["vary"] for each in (page, text, head)} == {"accept"}


# The limits by lines depend on the text and the time, not on how the text comes in pieces.

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
