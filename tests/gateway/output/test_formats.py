"""What holds for every format: nothing is lost or taken back, and pieces do not matter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.output.formats.base import pass_content
from picospec.gateway.output.style import FORMATS, FormatName
from tests.gateway.output.reading import CUTS, moments, read, run, split

NAMES: Sequence[FormatName] = sorted(FORMATS)
CALLS: Mapping[FormatName, str] = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>',
    "llama": '<|python_tag|>{"name": "%s", "parameters": %s}',
    "mistral": "[TOOL_CALLS]%s[ARGS]%s",
    "pythonic": "[%s(**%s)]",
    "qwen_coder": "<tool_call>\n<function=%s>%s</function>\n</tool_call>",
}
"""What a model writes for a name and arguments."""


MARKS = """
<tool_call> </tool_call> [TOOL_CALLS] [ARGS] [CALL_ID] <|python_tag|> ```json ``` <function=
<function=now> </function> <parameter=city> </parameter> "name" "arguments" "parameters" "now"
weather( now() city="Oslo" {"name":"now", "arguments":{ "parameters":{}} é null 1 Oslo
"""
FRAGMENTS = st.sampled_from([*"{}[]()<>\",:;'\\ \n=`", *MARKS.split()])
TEXTS = st.lists(FRAGMENTS, max_size=24).map("".join)
CITIES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)


def written(name: FormatName, city: str, days: int) -> str:
    """Return the call weather(city, days) as a model writes it."""
    if name == "pythonic":
        return f"[weather(city={city!r}, days={days})]"
    if name == "qwen_coder":
        values = (
            f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n{days}\n</parameter>"
        )
        return CALLS[name] % ("weather", f"\n{values}\n")
    return CALLS[name] % ("weather", json.dumps({"city": city, "days": days}))


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
def test_the_text_before_calls_is_content_and_the_space_between_is_not(
    name: FormatName,
) -> None:
    call = written(name, "Oslo", 1)

    message = read(FORMATS[name], [f"Let me see. \n\n{call}\n{call}\n"])

    assert message.content == "Let me see."
    assert message.decoded == [("weather", {"city": "Oslo", "days": 1})] * 2
    assert message.calls[0].id != message.calls[1].id


@pytest.mark.parametrize("name", NAMES)
def test_one_call_completes_the_message_if_calls_must_not_be_parallel(name: FormatName) -> None:
    call = written(name, "Oslo", 1)

    text = f"{call}\n{call}, and more"

    for pieces in ([text], list(text)):
        message = read(FORMATS[name], pieces, parallel=False)
        assert (message.content, len(message.calls), message.complete) == ("", 1, True)
        assert message.decoded == [("weather", {"city": "Oslo", "days": 1})]


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


def test_content_alone_is_passed_on_at_once() -> None:
    shown = [moment.content for moment in run(pass_content, ["a ", "<tool_call>", "\n"])]

    assert shown[:3] == ["a ", "a <tool_call>", "a <tool_call>\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_passed_on_as_soon_as_it_cannot_be_a_call(name: FormatName) -> None:
    shown = moments(FORMATS[name], ["Hel", "lo <", "b> ", "you"])

    assert [moment.content for moment in shown[:4]] == [
        "Hel",
        "Hello" if name in ("hermes", "qwen_coder", "llama") else "Hello <",
        "Hello <b>" if name != "pythonic" else "Hello <b> ",
        "Hello <b> you",
    ]
