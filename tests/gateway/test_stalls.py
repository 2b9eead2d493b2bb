"""What one callback of the event loop does for an answer does not grow with its length.

Counted are the calls of functions, Python's and C's, so that a busy host changes nothing. Bytes
are counted where a single call takes many.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from gateway.endpoints.recording import LARGE_BYTES, MARK, Recording
from gateway.endpoints.sending import JOINED
from gateway.output.output_format import FormatName
from tests.gateway.output.reading import NAMES, written
from tests.gateway.scripted import HI, MODEL, Body, ByteTokenizer, ScriptedEngine, ask, requests

ASKED, APART = requests(choices=2, top=2)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
SHORT, LONG = JOINED + 9, 5 * JOINED + 9
"""Answers of so many tokens have as many deltas left at the end that are not joined."""


class Work:
    most = calls = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        self.calls += event in ("call", "c_call")

    def run(self, handle: asyncio.Handle, stock: Callable[[asyncio.Handle], None]) -> None:
        self.calls = 0
        sys.setprofile(self)
        try:
            stock(handle)
        finally:
            self.end()

    def end(self) -> None:
        sys.setprofile(None)
        self.most = max(self.most, self.calls)


@contextmanager
def counted() -> Iterator[Work]:
    """Count the calls of each callback of the loop; `most` is the largest number."""
    work, stock = Work(), asyncio.Handle._run
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(asyncio.Handle, "_run", lambda handle: work.run(handle, stock))
        yield work
        work.end()  # of the callback in which the test goes on


async def most(path: str, body: Body, text: str, **settings: Any) -> int:  # noqa: ANN401
    """Return the calls of the largest callback while a model writes a text, a byte a delta."""
    script = [bytes([byte]) for byte in text.encode()]
    engine = ScriptedEngine(script, context_tokens=1 << 16)
    marked = ByteTokenizer(template="<think><tool_call>")
    with counted() as work:
        answer = await ask(body, engine, path=path, tokenizer=marked, **settings)
    assert answer.status_code == 200, answer.text
    return work.most


async def check(path: str, body: Body, text: Callable[[int], str], **settings: Any) -> None:  # noqa: ANN401
    """Raise AssertionError if the work grows with the text. text: one of so many characters."""
    await most(path, body, text(SHORT), **settings)  # what is made once
    short, long = [await most(path, body, text(size), **settings) for size in (SHORT, LONG)]

    assert long < 1.5 * short, (short, long)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ASKED)
async def test_no_callback_grows_with_the_answer(name: str, stream: bool) -> None:
    path, body = ASKED[name]

    await check(path, {**body, "stream": stream}, lambda size: "a" * size)


@pytest.mark.parametrize("name", APART)
async def test_nor_with_one_that_runs_in_the_background(name: str) -> None:
    path, body = APART[name]

    await check(path, {**body, "stream": True}, lambda size: "a" * size)


@pytest.mark.parametrize(
    ("path", "stream"), [("/v1/chat/completions", False), ("/api/chat", True)]
)
@pytest.mark.parametrize("form", NAMES)
async def test_nor_with_a_call_in_any_format(form: FormatName, path: str, stream: bool) -> None:
    body = {"model": MODEL, "messages": HI, "tools": [TOOL], "stream": stream}

    await check(path, body, lambda size: written(form, "a" * size, 1), tool_format=form)


@pytest.mark.parametrize(
    ("name", "most"), [("chat", (1 << 20) // (8 * 21)), ("responses", (1 << 20) // (4 * 21))]
)
async def test_an_answer_has_a_million_log_probabilities_at_most(name: str, most: int) -> None:
    engine = ScriptedEngine(context_tokens=1 << 18)
    path, body = requests(choices=8, top=20)[0][name]

    await ask(body, engine, path=path)

    assert {job.max_tokens for job in engine.jobs} == {most}


@pytest.mark.parametrize("form", NAMES)
async def test_nor_with_the_schemas_of_tools_that_become_a_grammar(form: FormatName) -> None:
    async def work(arguments: int) -> int:
        named = {f"a{i}": {"enum": ["x" * 90] * 10} for i in range(arguments)}
        schema = {"type": "object", "properties": named, "required": [*named]}
        function = {"name": "f", "parameters": schema, "strict": True}
        body = {"messages": HI, "tools": [{"type": "function", "function": function}] * 3}
        engine = ScriptedEngine(features=frozenset({"structured_outputs"}))
        marked = ByteTokenizer(template="<tool_call>")
        with counted() as done:
            answer = await ask(body, engine, tokenizer=marked, tool_format=form)
        assert answer.status_code == 200, answer.text
        return done.most

    await work(30)

    assert await work(90) < 1.5 * await work(30)


async def test_only_little_is_compressed_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, here, stock = threading.get_ident(), list[int](), zlib.compress

    def compress(data: bytes, level: int) -> bytes:
        if threading.get_ident() == loop:
            here.append(len(data))
        return stock(data, level)

    monkeypatch.setattr(zlib, "compress", compress)
    request = {**APART["responses"][1], "instructions": "b" * 400_000, "stream": True}
    engine = ScriptedEngine([b"a"] * 3000, context_tokens=1 << 19)

    answer = await ask(request, engine, path="/v1/responses")

    assert answer.text.count("b" * 400_000) == 4  # events show the request
    assert 0 < max(here) <= LARGE_BYTES


async def test_what_events_repeat_of_a_request_is_kept_once() -> None:
    recording = Recording(block_bytes=100, repeated=b"b" * 10_000)
    for _ in range(100):
        recording.add(b"data: {%b}\n\n" % MARK)

    assert recording.size_bytes < 12_000
    assert b"".join(recording.shown(recording.since(0))).startswith(b"data: {bbb")
