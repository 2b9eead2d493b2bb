"""Calls of Mistral's older and newer models."""

from __future__ import annotations

import pytest

from picospec.gateway.output.formats.mistral import Mistral
from tests.gateway.output.reading import Read, read


def mistral(text: str) -> Read:
    return read(Mistral(), list(text))


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"},{"name": "g"}]',
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]bcdefghij[ARGS]{}',
        '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g {}',
    ],
)
def test_the_ways_of_writing_two_calls(text: str) -> None:
    assert mistral(f"So: {text}").decoded == [("f", {"a": 1}), ("g", {})]
    assert mistral(f"So: {text}").content == "So:"


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] is a marker",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS]f[ARGS][]",
        '[TOOL_CALLS][{"arguments": {}}]',
    ],
)
def test_a_malformed_call_is_content(text: str) -> None:
    assert mistral(text) == Read(content=text)


def test_an_array_has_one_call_if_calls_must_not_be_parallel() -> None:
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'

    assert read(Mistral(), [text], parallel=False).decoded == [("f", {})]


def test_what_follows_a_call_in_a_broken_array_is_content() -> None:
    message = mistral('[TOOL_CALLS][{"name": "f", "arguments": {}}, oops]')

    assert (message.decoded, message.content) == ([("f", {})], ", oops]")
