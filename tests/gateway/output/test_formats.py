"""What models write is read as the calls they mean, however it is cut; nothing is lost or taken
back.

A line of formats.jsonl is a text that a model writes, and the message that it is:

    format      how the model writes calls; "none" if all is content
    text        it is read in pieces, cut anywhere
    thinks      "may" if reasoning may come first, "opened" if the prompt has begun it
    tools       the functions that may be called, by their schemas; TOOLS by default
    parallel    false for one call at most
    calls       names and arguments; arguments that are cut stay a text
    content, reasoning    by default the content is all of the text

To add a case, add a line, and run `pytest tests/gateway/output --update`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.output.formats.base import pass_content
from gateway.output.formats.qwen_coder import QwenCoder
from gateway.output.message import CustomInput, ParsedMessage
from gateway.output.output_format import FORMATS, FormatName
from gateway.output.reading import Incoming, Steps
from gateway.output.reasoning import read_reasoning
from tests.gateway.output.reading import (
    CUTS,
    NAMES,
    THINK,
    TOOLS,
    Read,
    moments,
    read,
    run,
    split,
    written,
)
from tests.golden import Json, Line, grown, lines_of

GOLDEN = [*lines_of(Path(__file__).with_name("formats.jsonl"))]
RESULTS = ("calls", "content", "reasoning", "complete")


def text_of(line: Line) -> str:
    text: str = grown(line.given["text"])
    form = FORMATS.get(line.given["format"])
    for marker, seen in form.spelling.items() if form else ():
        text = text.replace(marker, seen)
    return text


def message_of(line: Line, cuts: Sequence[int]) -> Read:
    """Return the message of a golden text that is cut at these places."""
    thinks, name = line.given.get("thinks"), line.given["format"]
    tools = line.given.get("tools", TOOLS)

    def parse(text: Incoming, out: ParsedMessage) -> Steps[None]:
        if thinks is not None:
            yield from read_reasoning(text, out, THINK, opened=thinks == "opened")
        if name == "none":
            yield from pass_content(text, out)
        else:
            yield from FORMATS[cast(FormatName, name)].read(text, out, tools)

    pieces = split(text_of(line), cuts)
    return run(parse, pieces, parallel=line.given.get("parallel", True))[-1]


def shown(text: str, message: Read) -> Json:
    """Return what is expected of a text; nothing if all of it is content."""
    found: Json = {"reasoning": message.reasoning, "complete": message.complete}
    if message.calls or message.content != text:
        found |= {"calls": [[call.name, value_of(call.arguments)] for call in message.calls]}
        found |= {"content": message.content}
    return json.loads(json.dumps({name: value for name, value in found.items() if value}))  # type: ignore[no-any-return]


def value_of(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


@pytest.mark.parametrize("line", GOLDEN, ids=str)
def test_what_models_write_is_read_as_the_message_that_they_mean(
    line: Line, request: pytest.FixtureRequest
) -> None:
    text = text_of(line)

    line.check(shown(text, message_of(line, range(500))), request, RESULTS)


@settings(max_examples=15)
@pytest.mark.parametrize("line", GOLDEN, ids=str)
@given(cuts=CUTS)
@example(cuts=[])
def test_any_split_of_it_gives_the_same_message(line: Line, cuts: list[int]) -> None:
    text = text_of(line)

    assert shown(text, message_of(line, cuts)) == line.expected(RESULTS)


# The same holds of random texts, and of calls with random arguments.


MARKS = """
<tool_call> </tool_call> [TOOL_CALLS] [ARGS] [CALL_ID] <|python_tag|> ```json ``` <function=
<function=now> </function> <parameter=city> </parameter> "name" "arguments" "parameters" "now"
weather( now() city="Oslo" {"name":"now", "arguments":{ "parameters":{}} é null 1 Oslo
"""
FRAGMENTS = st.sampled_from([*"{}[]()<>\",:;'\\ \n=`", *MARKS.split()])
TEXTS = st.lists(FRAGMENTS, max_size=24).map("".join)
CITIES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS, cuts=CUTS, parallel=st.booleans())
def test_any_split_of_a_text_gives_the_same_message(
    name: FormatName, text: str, cuts: list[int], parallel: bool
) -> None:
    whole = read(FORMATS[name], list(text), parallel=parallel)

    assert read(FORMATS[name], split(text, cuts), parallel=parallel) == whole
    assert len(whole.calls) <= 1 or parallel


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS)
def test_a_text_without_calls_is_content_to_the_last_character(
    name: FormatName, text: str
) -> None:
    message = read(FORMATS[name], list(text))

    assert message.calls or message.content == text


@pytest.mark.parametrize("name", NAMES)
@given(city=CITIES, days=st.integers(-9, 9), cuts=CUTS)
def test_a_call_is_read_as_it_was_meant(
    name: FormatName, city: str, days: int, cuts: list[int]
) -> None:
    message = read(FORMATS[name], split(written(name, city, days), cuts))

    assert message.decoded == [("weather", {"city": city, "days": days})]
    assert message.content == ""


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "qwen_coder"])
@given(at=st.integers(0, 200))
def test_a_call_that_is_cut_is_content_before_it_has_begun_and_arguments_after(
    name: FormatName, at: int
) -> None:
    call = written(name, "Oslo", 1)
    cut = call[: at % len(call)]

    message = read(FORMATS[name], [cut])

    if message.calls:
        whole = read(FORMATS[name], [call]).calls[0].arguments
        assert message.content == ""
        assert whole.startswith(message.calls[0].arguments)
    else:
        assert message.content == cut


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_passed_on_as_soon_as_it_cannot_be_a_call(name: FormatName) -> None:
    shown = moments(FORMATS[name], ["Hel", "lo <", "b> ", "you"])

    assert [moment.content for moment in shown[:4]] == [
        "Hel",
        "Hello" if name in ("hermes", "qwen_coder", "llama") else "Hello <",
        "Hello <b>" if name != "pythonic" else "Hello <b> ",
        "Hello <b> you",
    ]


def test_a_string_is_passed_on_as_it_comes() -> None:
    pieces = ["<function=f><parameter=a>\n", "one", "\n", 'two"', "\n</para", "meter>"]

    shown = moments(QwenCoder(), pieces, tools={"f": {"properties": {"a": {"type": "string"}}}})

    assert [moment.calls[0].arguments for moment in shown[:6]] == [
        '{"a": "',
        '{"a": "one',
        '{"a": "one',
        '{"a": "one\\ntwo\\"',
        '{"a": "one\\ntwo\\"',
        '{"a": "one\\ntwo\\""',
    ]


# The text for a custom tool comes out of a JSON object, or is what was written instead of one.


@given(st.text(), st.booleans(), CUTS)
@example("a\U0001f600", True, list(range(30)))
def test_a_text_comes_out_of_json_however_it_is_cut(
    text: str, escaped: bool, cuts: list[int]
) -> None:
    reader = CustomInput()

    pieces = split(json.dumps({"input": text}, ensure_ascii=escaped), cuts)

    assert "".join(map(reader.feed, pieces)) + reader.finish() == text


@given(st.text('"\\\\u0dD83cC,:}n \n'), CUTS)
@example(r"\ud83d\udc", list(range(30)))
@example(r'a", "b": "c', [])
def test_any_text_comes_out_the_same_however_it_is_cut(text: str, cuts: list[int]) -> None:
    written = f'{{"input": "{text}"}}'
    whole, reader = CustomInput(), CustomInput()

    read = "".join(map(reader.feed, split(written, cuts))) + reader.finish()

    assert read == whole.feed(written) + whole.finish()
    assert json.loads(json.dumps(read).encode()) == read
    try:
        meant = json.loads(written)["input"]
        meant.encode()
    except ValueError:
        return
    assert read == meant


@pytest.mark.parametrize(
    "text", [r"grep -E \d+ a > b", r"\u12 \ud83d \udc00", 'say "hi" now', "\\ü"]
)
def test_what_is_no_json_within_a_text_is_the_text_itself(text: str) -> None:
    reader = CustomInput()

    assert reader.feed(f'{{"input": "{text}"}}') + reader.finish() == text


@pytest.mark.parametrize("written", ['{"patch": "a"}', "[1]", '{"input": 1}', "{"])
def test_arguments_of_another_form_are_the_text_themselves(written: str) -> None:
    reader = CustomInput()

    assert reader.feed(written) + reader.finish() == written
