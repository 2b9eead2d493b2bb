"""Calls in Python's notation."""

from __future__ import annotations

import pytest

from picospec.gateway.output.formats.pythonic import Pythonic
from tests.gateway.output.reading import Read, read

TOOLS = {"f": {}, "a.g-h": {}}


def pythonic(text: str) -> Read:
    return read(Pythonic(), list(text), tools=TOOLS)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'it\\'s'", "it's"),
        ('"\\u00e9 \\d"', "é \\d"),
        ('"\\ud83d\\ude00"', "😀"),
        ("-1", -1),
        ("1.5e3", 1500),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("{'a': [1, (2, 3)], \"b\": ')'}", {"a": [1, [2, 3]], "b": ")"}),
        ('{"a": true}', {"a": True}),
        ("''", ""),
    ],
)
def test_values_are_literals_of_python_or_json(literal: str, value: object) -> None:
    assert pythonic(f"[f(x={literal})]").decoded == [("f", {"x": value})]


def test_calls_are_read_one_after_the_other() -> None:
    message = pythonic(' [ f( class = "x" , y=2 ), a.g-h() ]\nDone.')

    assert message.decoded == [("f", {"class": "x", "y": 2}), ("a.g-h", {})]
    assert message.content == "Done."


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[f]",
        "[other()]",
        "[f(1)]",
        "[f(x=open('y'))]",
        "[f(x={'a', 'b'})]",
        "[f(x='\\ud800')]",
        "[f(x=1e999j)]",
        "[f(x=f(y=1))]",
        "[f(x=1",
        "[f(x='" + "(" * 1000 + "]",
        "[f(x=" + "(" * 100_000,
        "[see](http://f)",
        "f()",
    ],
)
def test_what_is_no_list_of_calls_is_content(text: str) -> None:
    assert pythonic(text) == Read(content=text)
