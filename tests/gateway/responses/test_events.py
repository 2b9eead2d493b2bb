"""Events of a response: of OpenAI's own types, in the order that clients need, and what they
add up to does not depend on how the text came."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from picospec.gateway.doors.responses_answer import Output, place_of
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.message import CallArguments, CallStart, Parsed

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
