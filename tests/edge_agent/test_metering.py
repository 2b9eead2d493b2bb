"""The counts of a proxied answer are found in any API, however its bytes are split."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.metering import EVENTS, Meter

JSON, LINES = "application/json", "application/x-ndjson"
Answer = tuple[str, list[Any]]
"""The content type of an answer, and its events."""

Form = tuple[str, int | None]
"""The newlines of an answer, and the indentation of its JSON."""


def answers(prompt: int, generated: int, texts: list[str]) -> dict[str, Answer]:
    """Return the same answer in every API."""
    usage = {"prompt_tokens": prompt, "completion_tokens": generated}
    timings = {"prompt_n": prompt - prompt // 2, "cache_n": prompt // 2}
    timings["predicted_n"] = generated
    third, rest = prompt // 3, prompt - 2 * (prompt // 3)
    cached = {"cache_read_input_tokens": third, "cache_creation_input_tokens": third}
    begun = {"message": {"usage": {"input_tokens": rest, **cached, "output_tokens": 1}}}
    ends = [{"usage": {"output_tokens": generated}}, {"type": "message_stop"}]
    whole = {"input_tokens": prompt, "output_tokens": generated, "details": {"cache_n": 1}}
    done = {"done": True, "prompt_eval_count": prompt, "eval_count": generated}
    native = {"tokens_evaluated": prompt, "tokens_predicted": 1, "timings": timings}
    chunks = [{"choices": [text], "response": text, "usage": None} for text in texts]
    return {
        "chat": (EVENTS, [*chunks, {"choices": [], "usage": usage}, "[DONE]"]),
        "chat with timings": (EVENTS, [*chunks, {"timings": timings}, "[DONE]"]),
        "messages": (EVENTS, [begun, *chunks, *ends]),
        "responses": (EVENTS, [*chunks, {"response": {"usage": whole, "output": texts}}]),
        "Ollama": (LINES, [*chunks, done]),
        "llama-server": (JSON, [[*chunks, native]]),
        "whole": (JSON, [{"choices": texts, "usage": usage}]),
    }


def written(answer: Answer, newline: str = "\n", indent: int | None = None) -> bytes:
    kind, events = answer
    indent = None if kind == LINES else indent
    texts = [each if each == "[DONE]" else json.dumps(each, indent=indent) for each in events]
    if kind == EVENTS:
        lines = ("".join(f"data: {line}\n" for line in text.split("\n")) for text in texts)
        texts = [*[": keep-alive\n"] * (len(events) % 2), *lines]
    return "".join(f"{text}\n" for text in texts).replace("\n", newline).encode()


def metered(kind: str, pieces: Iterable[bytes]) -> Meter:
    meter = Meter(kind)
    for piece in pieces:
        meter.take(piece)
    return meter


QUOTED = st.sampled_from(['data: {"usage": {"prompt_tokens": 9}}', '"usage": {}'])
APIS = st.sampled_from([*answers(1, 1, [])])
COUNT = st.integers(1, 10**8)
TEXTS = st.lists(st.text() | QUOTED, max_size=20)
FORMS = st.tuples(st.sampled_from(("\n", "\r\n")), st.sampled_from((None, 1)))


@given(APIS, COUNT, COUNT, TEXTS, FORMS, st.data())
def test_counts_are_found_wherever_an_answer_is_split(
    api: str, prompt: int, generated: int, texts: list[str], form: Form, data: st.DataObject
) -> None:
    kind, events = answer = answers(prompt, generated, texts)[api]
    text = written(answer, *form)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=30))), len(text)]

    meter = metered(kind, [text[i:j] for i, j in pairwise(cuts)])

    assert meter.counts() == (prompt, generated)
    if kind == JSON or form[1] is None:
        assert meter.events == (0 if kind == JSON else len(events))


def test_counts_at_the_end_of_a_huge_answer_are_found_in_little_memory() -> None:
    def embedded(usage: bytes) -> Iterator[bytes]:
        yield b'{"data": ['
        yield from (b'{"usage": 1}, ' * 70_000 for _ in range(64))
        yield b"1], " + usage + b"}"

    tracemalloc.start()
    outer = metered(JSON, embedded(b'"usage": {"prompt_tokens": 7}')).counts()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (outer, most < 8 << 20) == ((7, None), True)
    inner = metered(JSON, embedded(b'"more": {"usage": {"prompt_tokens": 7}}'))
    assert inner.counts() == (None, None)


@pytest.mark.parametrize("piece_bytes", [999, 1 << 18])
@pytest.mark.parametrize("after", [10, 1 << 19, (1 << 20) - 30, 1 << 20, 3 << 20])
def test_counts_before_a_long_field_are_found(after: int, piece_bytes: int) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "details": {"cached_tokens": 1}}
    answer = {"choices": ["a" * (1 << 20)], "usage": usage, "prompt_logprobs": ["é" * after]}
    text = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()

    meter = metered(
        JSON, (text[at : at + piece_bytes] for at in range(0, len(text), piece_bytes))
    )

    assert meter.counts() == (7, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        *(b'{"usage": %b}' % usage for usage in (b"null", b"7", b"[7]", b'{"prompt_tokens": ')),
        *(b'{"usage": {"input_tokens": %b}}' % n for n in (b'"7"', b"true", b"-1", b"1e3")),
        *(b"{}", b"", b"[]", b"[[1]]", b"\xff", b'{"usage": {"prompt_tokens": 10000000000}}'),
        gzip.compress(b'{"usage": {"prompt_tokens": 7}}', mtime=0),
        b'{"a": ' * 10**5 + b"1" + b"}" * 10**5,
    ],
)
def test_what_is_no_count_counts_nothing(wrong: bytes) -> None:
    assert metered(JSON, [wrong]).counts() == (None, None)
    assert metered(EVENTS, [b"data: %b\n\ndata: [DONE]\n\n" % wrong]).counts() == (None, None)


@pytest.mark.parametrize("texts", [2, 20_000])
def test_a_stream_that_a_client_leaves_is_charged_by_its_events(texts: int) -> None:
    kind, events = answers(8, 5, ["a" * 80] * texts)["messages"]

    meter = metered(kind, [written((kind, events[:-2]))])

    assert (meter.counts(), meter.events) == ((8, None), texts + 1)
