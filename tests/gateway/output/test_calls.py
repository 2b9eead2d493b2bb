"""What models write is read as the calls they mean, and anything else is content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from picospec.gateway.output.style import FORMATS, FormatName
from tests.gateway.output.reading import TOOLS, Read, Tools, moments, read

Decoded = Sequence[tuple[str, object]]
OTHERS: Mapping[FormatName, Tools] = {"pythonic": {"f": {}, "a.g-h": {}}}
"""The tools of formats whose tests have others than TOOLS."""

FENCED = '```json\n{\n  "name": "weather",\n  "arguments": {\n    "city": "Oslo"\n  }\n}\n```'
"""What Qwen2.5-Coder-1.5B writes."""

LONG = 5000
"""Texts of so many characters are read in one piece, not character by character."""

WEATHER = '{"name": "weather", "parameters": {"city": "Oslo"}}'
OSLO = ("weather", {"city": "Oslo"})
X = [("x", {"a": 1})]
ENDING = ("x", {"a": "</tool_call>"})
F, G = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g"}'
F_AND_G = [("f", {"a": 1}), ("g", {})]


def parsed(name: FormatName, text: str) -> Read:
    pieces = list(text) if len(text) < LONG else [text]
    return read(FORMATS[name], pieces, tools=OTHERS.get(name, TOOLS))


def tagged(call: str) -> str:
    return f"<tool_call>{call}</tool_call>"


READ: Mapping[FormatName, Sequence[tuple[str, Decoded, str]]] = {
    "hermes": [
        (tagged('{"name": "x", "arguments": {"a": 1}}}'), X, ""),
        (tagged('{"name": "x", "arguments": {"a": 1}'), X, ""),
        ('<tool_call>{"name": "x", "arguments": {"a": 1}}', X, ""),
        (tagged('{"arguments": {"a": 1}, "name": "x"}'), X, ""),
        (tagged('{"id": [{}], "name": "x", "parameters": {}}'), [("x", {})], ""),
        (tagged('{"name": "x", "arguments": "{\\"a\\": 1}"}'), X, ""),
        (tagged('{"name": "x", "arguments": {"a": 1}, "b": }'), X, ""),
        (tagged('{"name": "x"}'), [("x", {})], ""),
        (tagged('{"name": "x", "arguments": null}'), [("x", {})], ""),
        (tagged('{"name": "x", "arguments": {"a": "</tool_call>"}}'), [ENDING], ""),
        ("<tool_call>" + tagged('{"name": "x"}'), [("x", {})], "<tool_call>"),
        (tagged('{"name": "x", "arguments": {"a": 1}, oops}'), X, ", oops}</tool_call>"),
        (f"{FENCED}\n{FENCED}\nDone.\n```py\n1\n```", [OSLO] * 2, "Done.\n```py\n1\n```"),
    ],
    "llama": [
        (f"{WEATHER}; {WEATHER}", [OSLO] * 2, ""),
        (f" {WEATHER}\n{WEATHER};", [OSLO] * 2, ""),
        (f"<|python_tag|>{WEATHER}; {WEATHER}", [OSLO] * 2, ""),
        (f"{WEATHER}<|python_tag|>{WEATHER}", [OSLO] * 2, ""),
        ('{"type": "function", "name": "now", "parameters": {}}', [("now", {})], ""),
    ],
    "mistral": [
        (f"So: [TOOL_CALLS] [{F}, {G}]", F_AND_G, "So:"),
        (f'[TOOL_CALLS][{F[:-1]}, "id": "abcdefghi"}},{G}]', F_AND_G, ""),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', F_AND_G, ""),
        (
            '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}'
            "[TOOL_CALLS]g[CALL_ID]bcdefghij[ARGS]{}",
            F_AND_G,
            "",
        ),
        ('[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g {}', F_AND_G, ""),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, oops]', [("f", {})], ", oops]"),
    ],
    "pythonic": [
        (
            ' [ f( class = "x" , y=2 ), a.g-h() ]\nDone.',
            [("f", {"class": "x", "y": 2}), ("a.g-h", {})],
            "Done.",
        ),
    ],
}

LITERALS = [
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
]

CONTENT: Mapping[FormatName, Sequence[str]] = {
    "hermes": [
        "<tool_call>",
        f"a {tagged('now()')} b",
        tagged('{"arguments": {}}'),
        tagged('{"name": 1}'),
        tagged('{"name": ""}'),
        tagged('{"name": "\\ud800", "arguments": {}}'),
        tagged('{"name": "x", "arguments": [1]}'),
        tagged('{"name": "x", "arguments": "no"}'),
        tagged('{[1]: "x", "arguments": {}}'),
        tagged('{"name": "x" "arguments": {}}'),
        tagged('{"name": NaN}'),
        '<tool_call>{"name": ' + "[" * 100_000,
        f"Like this: {FENCED}",
        FENCED.replace("weather", "other"),
        FENCED.replace("arguments", "values"),
        '{"name": "now"}',
        "```json\n[1]\n```",
        " \n hello ",
    ],
    "llama": [
        '{"name": "Ada", "parameters": {}}',
        '{"title": "weather", "parameters": {}}',
        '{"name": "now"}',
        f"I call {WEATHER}",
        '<|python_tag|>brave_search.call(query="x")',
    ],
    "mistral": [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] is a marker",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS]f[ARGS][]",
        '[TOOL_CALLS][{"arguments": {}}]',
    ],
    "pythonic": [
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
    "qwen_coder": [
        f"a {text}" for text in ("<tool_call>\n<function f>", "<function=f", "<tool_call>x")
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "calls", "content"),
    [(name, *case) for name, cases in READ.items() for case in cases],
)
def test_what_models_write_is_read_as_the_calls_they_mean(
    name: FormatName, text: str, calls: Decoded, content: str
) -> None:
    message = parsed(name, text)

    assert (message.decoded, message.content) == (calls, content)


@pytest.mark.parametrize(("literal", "value"), LITERALS)
def test_values_in_pythons_notation_are_literals_of_python_or_json(
    literal: str, value: object
) -> None:
    assert parsed("pythonic", f"[f(x={literal})]").decoded == [("f", {"x": value})]


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in CONTENT.items() for text in texts]
)
def test_what_is_no_call_of_a_tool_is_content(name: FormatName, text: str) -> None:
    assert parsed(name, text) == Read(content=text)


def test_arguments_come_in_pieces_as_the_model_wrote_them() -> None:
    pieces = ['<tool_call>{"name": "x", "arguments": {', '"a" :  "é', "\\", '"}"', ", 1", "}}"]

    shown = moments(FORMATS["hermes"], pieces)

    assert [moment.calls[0].arguments for moment in shown[:6]] == [
        "{",
        '{"a" :  "é',
        '{"a" :  "é',
        '{"a" :  "é\\"}"',
        '{"a" :  "é\\"}", 1',
        '{"a" :  "é\\"}", 1}',
    ]


def test_arguments_that_prove_to_be_no_json_are_left_as_they_are() -> None:
    message = parsed("hermes", tagged('{"name": "x", "arguments": {"a": 1, <b>}}'))

    assert message.calls[0].arguments == '{"a": 1, '
    assert message.content == "<b>}}</tool_call>"


def test_an_array_has_one_call_if_calls_must_not_be_parallel() -> None:
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'

    assert read(FORMATS["mistral"], [text], parallel=False).decoded == [("f", {})]
