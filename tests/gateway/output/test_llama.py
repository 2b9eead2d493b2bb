"""Calls of Llama 3, with its tag and without."""

from __future__ import annotations

import pytest

from picospec.gateway.output.formats.llama import Llama
from tests.gateway.output.reading import Read, read

WEATHER = '{"name": "weather", "parameters": {"city": "Oslo"}}'


def llama(text: str) -> Read:
    return read(Llama(), list(text))


@pytest.mark.parametrize(
    "text",
    [
        f"{WEATHER}; {WEATHER}",
        f" {WEATHER}\n{WEATHER};",
        f"<|python_tag|>{WEATHER}; {WEATHER}",
        f"{WEATHER}<|python_tag|>{WEATHER}",
        f"{WEATHER};{{'type': 0}}".replace("{'type': 0}", WEATHER),
    ],
)
def test_calls_follow_one_another(text: str) -> None:
    assert llama(text).decoded == [("weather", {"city": "Oslo"})] * 2
    assert llama(text).content == ""


def test_the_type_may_come_first() -> None:
    message = llama('{"type": "function", "name": "now", "parameters": {}}')

    assert message.decoded == [("now", {})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "parameters": {}}',
        '{"title": "weather", "parameters": {}}',
        '{"name": "now"}',
        f"I call {WEATHER}",
        '<|python_tag|>brave_search.call(query="x")',
    ],
)
def test_what_is_no_call_of_a_tool_is_content(text: str) -> None:
    assert llama(text) == Read(content=text)
