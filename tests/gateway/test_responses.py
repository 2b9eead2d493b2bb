"""Events of a response: of OpenAI's own types, in the order that clients need, and what they
add up to does not depend on how the text came. They are kept within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter
from starlette.types import Message

from gateway.endpoints import response_store, responses_handlers
from gateway.endpoints.recording import Dropped, Recording, Replay
from gateway.endpoints.response_store import (
    MAX_AGE_S,
    MAX_BYTES,
    MAX_RESPONSES,
    ResponseStore,
    ResponseStores,
    StoredResponse,
)
from gateway.endpoints.responses import ResponsesRequest
from gateway.endpoints.responses_output import Output, place_of
from gateway.errors import InvalidRequest, Unauthorized
from gateway.json_bounds import Values
from gateway.keys import KeyLimits
from gateway.output.detokenise import TextDelta
from gateway.output.message import CallArguments, CallStart, Parsed
from gateway.tenant_limits import Tenant, TenantMetrics
from tests.gateway.scripted import SetClock, events_of

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
KEY = "0" * 32
CALLED = {
    "f": {"name": "f"},
    "n__g": {"name": "g", "namespace": "n"},
    "custom": {"name": "custom"},
    "unknown": {"name": "unknown"},
}
pieces = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3)
answers = st.tuples(
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
    st.lists(st.tuples(st.sampled_from(sorted(CALLED)), pieces), max_size=3),
    st.sampled_from(["stop", "length"]),
)


def deltas(answer: Any) -> list[TextDelta]:  # noqa: ANN401 - what `answers` draws
    """Return an answer piece by piece."""
    reasoning, text, calls, finish = answer
    parsed = [Parsed(piece, (), 1) for piece in reasoning]
    found = [TextDelta("", 1, parsed=each) for each in parsed]
    found += [TextDelta(piece, 1) for piece in text]
    for index, (name, arguments) in enumerate(calls):
        start = CallStart(index, f"call_{index}", name, name == "custom")
        found.append(TextDelta("", 1, parsed=Parsed("", (start,), 0)))
        for piece in arguments:
            grown = Parsed("", (CallArguments(index, piece, custom=name == "custom"),), 0)
            found.append(TextDelta("", 1, parsed=grown))
    return [*found, TextDelta("", 1, finish=finish)]


def read(answer: Any) -> tuple[list[Any], list[Any]]:  # noqa: ANN401 - what `answers` draws
    """Return the events, each of OpenAI's type, and the items."""
    output = Output(KEY, CALLED, seals=True)
    events = [event for delta in deltas(answer) for event in output.read(delta)]
    numbered = [{"type": name, "sequence_number": 0, **fields} for name, fields in events]
    return [EVENTS.validate_python(event) for event in numbered], output.items


@settings(max_examples=200)
@given(answers)
def test_each_item_is_added_then_grows_then_is_done(answer: Any) -> None:  # noqa: ANN401
    events, items = read(answer)

    open_item: dict[str, Any] = {}
    for event in events:
        if event.type == "response.output_item.added":
            assert not open_item
            open_item = {"id": event.item.id, "place": event.output_index, "text": ""}
            assert place_of(event.item.id) == (f"resp_{KEY}", event.output_index)
            continue
        assert event.output_index == open_item["place"]
        if event.type == "response.output_item.done":
            assert event.item.to_dict() == items[open_item["place"]]
            open_item = {}
        elif event.type.endswith(".delta"):
            open_item["text"] += event.delta
        elif event.type.endswith(("_text.done", "arguments.done", "input.done")):
            (text,) = (
                getattr(event, n) for n in ("text", "arguments", "input") if hasattr(event, n)
            )
            assert text == open_item["text"]
    assert not open_item


@given(answers)
def test_the_items_have_all_that_was_written(answer: Any) -> None:  # noqa: ANN401
    reasoning, text, calls, finish = answer

    _, items = read(answer)

    kinds = ["reasoning"] * bool(reasoning) + ["message"] * bool(text)
    assert [item["type"] for item in items[: len(kinds)]] == kinds
    assert [item["content"][0]["text"] for item in items[: len(kinds)]] == [
        "".join(each) for each in (reasoning, text) if each
    ]
    found = [{**item, "id": "", "status": ""} for item in items[len(kinds) :]]
    assert found == [
        {
            "type": "custom_tool_call" if name == "custom" else "function_call",
            "input" if name == "custom" else "arguments": "".join(arguments),
            "call_id": f"call_{index}",
            **CALLED[name],
            "id": "",
            "status": "",
        }
        for index, (name, arguments) in enumerate(calls)
    ]
    statuses = [item.get("status", "completed") for item in items]
    cut = finish == "length" and items and items[-1]["type"] != "reasoning"
    assert statuses == ["completed"] * (len(items) - bool(cut)) + ["incomplete"] * bool(cut)


def test_what_an_open_call_still_gets_comes_before_the_text_of_the_same_delta() -> None:
    output = Output(KEY, CALLED, seals=False)
    begins, rest = CallStart(0, "call_0", "f"), CallArguments(0, "{}")

    for delta in (
        TextDelta("", 1, parsed=Parsed("", (begins,), 0)),
        TextDelta("Hi", 1, parsed=Parsed("", (rest,), 0), finish="stop"),
    ):
        for _ in output.read(delta):
            pass

    shown = [(item["type"], item.get("arguments")) for item in output.items]
    assert shown == [("function_call", "{}"), ("message", None)]


# A ResponseStore keeps the responses that were used last, within its bounds.

HALF = StoredResponse(b"", bytes(MAX_BYTES // 2))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep large", "keep too large", "find", "remove", "wait"]),
        st.integers(0, 5),
    ),
    max_size=30,
)
KEPT = {
    "keep": StoredResponse(b"1", b"2"),
    "keep large": HALF,
    "keep too large": StoredResponse(b"1", bytes(MAX_BYTES)),
}


@given(STEPS)
def test_a_shelf_is_a_list_of_what_was_used_last_cut_at_its_bounds(
    steps: list[tuple[str, int]],
) -> None:
    clock = SetClock()
    responses = ResponseStore(clock)
    used = list[tuple[str, StoredResponse, float]]()
    for number, (step, id) in enumerate(steps):
        name = f"{id}" if step in ("find", "remove") else f"{number}"
        if step == "wait":
            clock.now += MAX_AGE_S / 3
        elif step == "find":
            found = next((each for each in used if each[0] == name), None)
            assert responses.find(name) == (found and found[1])
            if found:
                used = [each for each in used if each is not found]
                used.append((found[0], found[1], clock.now))
        elif step == "remove":
            responses.remove(name)
            used = [each for each in used if each[0] != name]
        else:
            responses.keep(name, KEPT[step])
            if step != "keep too large":
                used.append((name, KEPT[step], clock.now))
        used = [each for each in used if each[2] > clock.now - MAX_AGE_S]
        while sum(kept.size_bytes for _, kept, _ in used) > MAX_BYTES:
            del used[0]
    for name, kept, _ in used:
        assert responses.find(name) == kept


def test_the_last_responses_are_kept() -> None:
    responses = ResponseStore(SetClock())

    for number in range(MAX_RESPONSES + 2):
        responses.keep(str(number), KEPT["keep"])

    assert [responses.find(str(number)) is None for number in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("sizes", "left"),  # 100 bytes for all keys
    [
        ([("a", 60), ("b", 40)], ["a0", "b1"]),
        ([("a", 30), ("a", 30), ("b", 50)], ["a1", "b2"]),  # the oldest of the largest
        ([("b", 20), ("a", 30), ("a", 30), ("b", 21)], ["a2", "b0", "b3"]),
        ([("b", 10), ("a", 90), ("b", 1)], ["b0", "b2"]),
        ([("a", 50), ("b", 50), ("c", 1)], ["b1", "c2"]),
        ([("a", 40), ("b", 90)], ["a0"]),  # the largest may be the newest
        ([("a", 101)], []),
    ],
)
def test_all_keys_together_have_a_bound_at_which_the_largest_gives_way(
    monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[str, int]], left: list[str]
) -> None:
    monkeypatch.setattr(response_store, "MAX_ALL_BYTES", 100)
    stores, clock = ResponseStores(), SetClock()
    metrics = TenantMetrics(CollectorRegistry())
    request_contexts: dict[str, Any] = {
        key: SimpleNamespace(tenant=Tenant(key, KeyLimits(), metrics), clock=clock)
        for key in "abc"
    }

    for number, (key, size) in enumerate(sizes):
        stores.of(request_contexts[key]).keep(
            f"{key}{number}", StoredResponse(b"", bytes(size))
        )

    ids = [f"{key}{number}" for number, (key, _) in enumerate(sizes)]
    assert sorted(id for id in ids if stores.of(request_contexts[id[0]]).find(id)) == left


@pytest.mark.parametrize(
    ("items", "more", "is_refused"),
    [(16_000, 0, False), (17_000, 0, True), (8_000, 8_000, False), (8_500, 8_500, True)],
)
def test_a_body_goes_on_with_no_more_items_than_one_body_has(
    items: int, more: int, is_refused: bool
) -> None:
    responses, item = ResponseStore(SetClock()), b'{"type":"reasoning","summary":[]}'
    kept = StoredResponse(b'{"output":[]}', b"[%b]" % b",".join([item] * items))
    responses.keep("resp_1", kept)
    given, values = [b'{"role":"user","content":"Hi"}', *[item] * more], Values()
    asked = b'{"input":[%b],"previous_response_id":"resp_1"}' % b",".join(given)
    values.add(asked)
    body = ResponsesRequest.model_validate_json(asked, context=values)

    with pytest.raises(InvalidRequest) if is_refused else nullcontext() as refused:
        responses_handlers.convert(responses, body)

    assert not is_refused or refused.value.param == "previous_response_id"


# A recording keeps the events of a response, for those who ask for them again.


def revoked() -> None:
    raise Unauthorized("no API key, or a wrong one")


@pytest.mark.parametrize(
    ("number", "check_key", "code"),
    [(0, lambda: None, "events_dropped"), (2, revoked, "invalid_api_key")],
)
async def test_who_reads_too_slowly_or_has_lost_the_key_is_told_so(
    number: int, check_key: Callable[[], None], code: str
) -> None:
    recording, sent = Recording(1, 1), list[bytes]()
    for _ in range(2):
        recording.add(b"data: {}\n\n")

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    context: Any = SimpleNamespace(check_key=check_key)
    await Replay(recording, number, 60, context)({}, asyncio.Event().wait, send)  # type: ignore[arg-type]

    (error,) = (EVENTS.validate_python(event) for event in events_of(b"".join(sent).decode()))
    assert (error.type, error.code) == ("error", code)


@given(st.lists(st.lists(st.binary(max_size=9), max_size=4)), st.data())
def test_a_recording_has_the_events_from_any_on_or_says_that_they_are_dropped(
    added: list[list[bytes]], data: st.DataObject
) -> None:
    recording = Recording(block_bytes=20, max_bytes=data.draw(st.integers(1, 200)))
    events = [
        b"".join(b"%d" % byte for byte in each) + b"\n\n" for part in added for each in part
    ]
    left = iter(events)
    for part in added:
        recording.add(b"".join(next(left) for _ in part))
    if data.draw(st.booleans()):
        recording.end()

    is_dropped = False
    for first in reversed(range(len(events))):
        number, found = first, b""
        try:
            while piece := recording.since(number):
                number, found = number + piece.count(b"\n\n"), found + piece
        except Dropped:
            is_dropped = True
        else:
            assert (found, is_dropped) == (b"".join(events[first:]), False)
