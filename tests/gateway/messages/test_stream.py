"""A stream of blocks, which come one after the other, adds up to the message as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.messages_answer import SIGNATURE, ContentEvents, content_of
from picospec.gateway.errors import Unavailable
from picospec.gateway.ports import Delta
from tests.gateway.output.reading import CUTS
from tests.gateway.output.test_style import grouped, parse
from tests.gateway.scripted import Body, ByteTokenizer, ScriptedEngine, ask, events_of
from tests.gateway.test_completions import slow

CALL = '<tool_call>{{"name": "weather", "arguments": {}}}</tool_call>'
ARGUMENTS = ("{}", '{"city": "Oslo", "days": [1, 2.0]}', '{"city": "Ålesund\\n"}')
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
HI: Body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}
GROWS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}

answers = st.tuples(
    st.sampled_from(["", "<think>Hm, \u00e9.</think>"]),
    st.sampled_from(["", "Let me see."]),
    st.lists(st.sampled_from([CALL.format(text) for text in ARGUMENTS]), max_size=2),
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


def test_arguments_that_are_cut_are_read_as_far_as_they_go() -> None:
    cut = CALL.format('{"a": ["bc", "d').removesuffix("}</tool_call>")
    (delta,) = parse([Delta(tuple(cut.encode()), finish="length")])

    (block,) = content_of(delta)

    assert block["input"] == {"a": ["bc", "d"]}


async def answer_of(engine: ScriptedEngine, **body: object) -> httpx.Response:
    tokenizer = ByteTokenizer(template="<think></think><tool_call>")
    return await ask(
        HI | body, engine, path="/v1/messages", tokenizer=tokenizer, keep_alive_s=0.02
    )


async def streamed(engine: ScriptedEngine, **body: object) -> list[Body]:
    """Return the events, whose names must be their types."""
    answer = await answer_of(engine, stream=True, **body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(answer.text)
    names = [line[7:] for line in answer.text.split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    return events


@pytest.mark.parametrize(
    ("script", "body", "reason", "stop"),
    [
        ([b"Hi"], {}, "end_turn", None),
        ([b"one t", b"wo three"], {"stop_sequences": ["x", "two"]}, "stop_sequence", "two"),
        ([CALL.format("{}").encode()], {"tools": [TOOL]}, "tool_use", None),
    ],
)
async def test_a_message_says_why_it_ended(
    script: list[bytes], body: Body, reason: str, stop: str | None
) -> None:
    engine = ScriptedEngine(script, context_tokens=200)

    events = await streamed(engine, **body)
    message = (await answer_of(engine, **body)).json()

    begin, last = events[0]["message"], events[-2]
    assert (begin["content"], begin["stop_reason"], begin["role"]) == ([], None, "assistant")
    usage = {name: message["usage"][name] for name in begin["usage"]}
    assert begin["usage"] == {**usage, "output_tokens": 0}
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": stop}
    assert last["delta"] == {name: message[name] for name in last["delta"]}
    assert last["usage"] == message["usage"]
    assert events[-1] == {"type": "message_stop"}
    assert without_ids(added_up(events[1:-2])) == without_ids(message["content"])


async def test_pings_come_before_the_message_and_an_error_is_the_last_event() -> None:
    events = await streamed(slow([b"a"], Unavailable("gone")))

    kinds = [event["type"] for event in events]
    assert kinds[0] == "ping"
    block = ["content_block_start", "content_block_delta"]
    assert kinds[kinds.count("ping") :] == ["message_start", *block, "error"]
    error = events[-1]["error"]
    assert (error["type"], error["message"]) == ("api_error", "gone")
