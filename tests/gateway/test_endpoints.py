"""What no case of the corpus shows of an endpoint: keys, limits by lines and by time, streams
of any grouping of tokens, and what is sent while there is nothing to show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from gateway.endpoints import messages_answer, ollama_answer, sending
from gateway.endpoints.answer import Answer
from gateway.endpoints.line_limits import LineLimits, limited
from gateway.endpoints.messages_content import SIGNATURE, ContentEvents, content_of
from gateway.errors import Unavailable
from gateway.output.detokenise import TextDelta
from gateway.output.message import CallArguments, Parsed
from gateway.output.stream import ChoiceStream
from tests.gateway.cases import normalised
from tests.gateway.output.reading import CUTS, grouped, parse
from tests.gateway.scripted import (
    CALL,
    HERMES,
    WEATHER,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
    writes,
)


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


# Blocks of a message's stream, which come one after the other, add up to the whole message.

WRITTEN = '<tool_call>{{"name": "weather", "arguments": {}}}</tool_call>'


ARGUMENTS = ("{}", '{"city": "Oslo", "days": [1, 2.0]}', '{"city": "Ålesund\\n"}')


GROWS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}


answers = st.tuples(
    st.sampled_from(["", "<think>Hm, \u00e9.</think>"]),
    st.sampled_from(["", "Let me see."]),
    st.lists(st.sampled_from([WRITTEN.format(text) for text in ARGUMENTS]), max_size=2),
).map(lambda parts: (parts[0] + parts[1] + "\n".join(parts[2])).encode())


def added_up(events: Iterable[Body]) -> list[Body]:
    """Return the blocks of a stream, in which each event must be in its place."""
    blocks: list[Body] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("content_block_")
        assert is_open == (kind != "start")
        assert event["index"] == len(blocks) - (kind != "start")
        if kind == "start":
            blocks.append({**event["content_block"], "partial_json": ""})
        elif kind == "delta":
            of, field = GROWS[event["delta"]["type"]]
            assert blocks[-1]["type"] == of
            blocks[-1][field] += event["delta"][field]
        is_open = kind != "stop"
    assert not is_open
    for block in blocks:
        if written := block.pop("partial_json"):
            block["input"] = json.loads(written)
    return blocks


def without_ids(blocks: Iterable[Body]) -> list[Body]:
    return [{name: block[name] for name in block.keys() - {"id"}} for block in blocks]


@given(answers, CUTS)
def test_any_grouping_of_tokens_adds_up_to_the_whole_message(
    written: bytes, cuts: list[int]
) -> None:
    deltas, content = parse(grouped(written, cuts)), ContentEvents()

    events = [event for delta in deltas for event in content.read(delta)] + list(content.end())

    (at_once,) = parse(grouped(written))
    blocks, whole = added_up(events), content_of(at_once)
    assert without_ids(blocks) == without_ids(whole)
    assert all(block["signature"] == SIGNATURE for block in blocks if "signature" in block)
    assert all(block["id"].startswith("toolu_") for block in blocks if "id" in block)


async def test_a_key_at_its_limit_has_an_error_of_anthropics_shape() -> None:
    app = make_app(ScriptedEngine(), key_limits={"requests_a_minute": 1}, api_keys=["k"])
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    async with client_of(app, {"x-api-key": "k"}) as client:
        answers = [await client.post("/v1/messages", json=body) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    error = answers[1].json()
    assert (error["type"], error["error"]["type"]) == ("error", "rate_limit_error")


# A stream that has nothing to show yet says so, and is else as it always is.

COMMENT = Answer.keep_alive


STREAM = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


slow = partial(ScriptedEngine, begins_after_s=0.15)


@pytest.mark.parametrize("choices", [1, 3])
async def test_comments_come_until_the_first_event_and_change_none(choices: int) -> None:
    body = STREAM | {"n": choices}

    late = await ask(body, slow(pause=lambda: asyncio.sleep(0.03)), keep_alive_s=0.02)
    quick = await ask(body, keep_alive_s=0.02)

    comments, events = late.text.split("data: ", 1)
    assert comments == COMMENT.decode() * comments.count(COMMENT.decode()) != ""
    assert late.headers["content-type"] == quick.headers["content-type"]
    assert COMMENT.decode() not in events + quick.text
    assert events.count("data: ") == quick.text.count("data: ") - 1


async def test_an_error_after_a_comment_is_an_event() -> None:
    late, quick = [
        await ask(STREAM, engine((), Unavailable("gone")), keep_alive_s=0.02)
        for engine in (slow, ScriptedEngine)
    ]

    assert (late.status_code, quick.status_code) == (200, 503)
    assert late.text.startswith(COMMENT.decode())
    assert '"code":"verifier_unavailable"' in late.text
    assert "[DONE]" not in late.text


async def test_a_call_that_is_shown_when_it_is_whole_is_waited_for() -> None:
    body = {"messages": STREAM["messages"], "tools": [WEATHER]}
    engine = ScriptedEngine(
        script=[bytes([byte]) for byte in (CALL % "Oslo").encode()],
        pause=lambda: asyncio.sleep(0.01),
    )

    settings = {"tokenizer": HERMES, "keep_alive_s": 0.02}
    answer = await ask(body, engine, path="/api/chat", **settings)

    *waits, call, _ = answer.text.splitlines()
    assert len(waits) > 3
    assert "Oslo" in call


async def test_a_comment_that_a_slow_client_has_not_taken_is_not_overtaken() -> None:
    app = make_app(slow(), keep_alive_s=0.02)
    sending, most = 0, 0
    bodies: list[bytes] = []
    requests = [{"type": "http.request", "body": json.dumps(STREAM).encode()}]

    async def receive() -> Message:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal sending, most
        sending += 1
        most = max(most, sending)
        await asyncio.sleep(0.2 if message.get("body") == COMMENT else 0)
        bodies.append(message.get("body", b""))
        sending -= 1

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)

    assert COMMENT in bodies
    assert b"".join(bodies).count(b"[DONE]") == 1
    assert most == 1


@pytest.mark.parametrize(
    ("endpoint", "body", "wait"),
    [
        ("/v1/messages", STREAM, messages_answer.MessageAnswer.keep_alive),
        ("/api/chat", STREAM, ollama_answer.OllamaChatAnswer.keep_alive),
        ("/api/generate", {"prompt": "Hi"}, ollama_answer.TextAnswer.keep_alive),
    ],
)
async def test_other_endpoints_have_words_of_their_own_for_it(
    endpoint: str, body: Body, wait: bytes
) -> None:
    late, quick = [
        normalised((await ask(body, engine(), path=endpoint, keep_alive_s=0.02)).text)
        for engine in (slow, ScriptedEngine)
    ]

    waits = late.count(wait.decode()) - quick.count(wait.decode())
    assert waits > 0
    assert late == wait.decode() * waits + quick


async def test_the_characters_of_a_long_call_are_joined_twice_if_it_is_not_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined, characters, city = sending.joined, 0, "Oslo " * 500

    def counted(parts: Sequence[Parsed]) -> Parsed:
        nonlocal characters
        calls = (piece for part in parts for piece in part.calls)
        characters += sum(len(each.text) for each in calls if isinstance(each, CallArguments))
        return joined(parts)

    monkeypatch.setattr(sending, "joined", counted)

    hi = [{"role": "user", "content": "Hi"}]
    body = {"messages": hi, "tools": [WEATHER]}
    answer = await ask(body, writes(CALL % city), tokenizer=HERMES)

    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": city}
    assert characters <= 2 * len(call["function"]["arguments"])


async def test_nobody_on_the_way_keeps_a_stream_or_waits_for_its_end() -> None:
    answer = await ask(STREAM)

    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
