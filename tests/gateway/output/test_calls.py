"""What models write is read as the calls they mean, and anything else is content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from picospec.gateway.output.formats.choose import FORMATS, FormatName
from picospec.gateway.output.incoming import Incoming, Steps
from picospec.gateway.output.message import Message
from tests.gateway.output.reading import TOOLS, Read, read, run

Decoded = Sequence[tuple[str, object]]
OTHERS: Mapping[FormatName, Mapping[str, Mapping[str, object]]] = {
    "pythonic": {"f": {}, "a.g-h": {}}
}
"""The tools of formats whose tests have others than TOOLS."""

FENCED = '```json\n{\n  "name": "weather",\n  "arguments": {\n    "city": "Oslo"\n  }\n}\n```'
"""What Qwen2.5-Coder-1.5B writes."""

LONG = 5000
"""Texts of so many characters are read in one piece, not character by character."""

WEATHER = '{"name": "weather", "parameters": {"city": "Oslo"}}'
OSLO = ("weather", {"city": "Oslo"})
F_AND_G = [("f", {"a": 1}), ("g", {})]


def parsed(name: FormatName, text: str) -> Read:
    pieces = list(text) if len(text) < LONG else [text]
    return read(FORMATS[name], pieces, tools=OTHERS.get(name, TOOLS))


def tagged(call: str) -> str:
    return f"<tool_call>{call}</tool_call>"


READ: Sequence[tuple[FormatName, str, Decoded, str]] = [
    ("hermes", tagged('{"name": "x", "arguments": {"a": 1}}}'), [("x", {"a": 1})], ""),
    ("hermes", tagged('{"name": "x", "arguments": {"a": 1}'), [("x", {"a": 1})], ""),
    ("hermes", '<tool_call>{"name": "x", "arguments": {"a": 1}}', [("x", {"a": 1})], ""),
    ("hermes", tagged('{"arguments": {"a": 1}, "name": "x"}'), [("x", {"a": 1})], ""),
    ("hermes", tagged('{"id": [{}], "name": "x", "parameters": {}}'), [("x", {})], ""),
    ("hermes", tagged('{"name": "x", "arguments": "{\\"a\\": 1}"}'), [("x", {"a": 1})], ""),
    ("hermes", tagged('{"name": "x", "arguments": {"a": 1}, "b": }'), [("x", {"a": 1})], ""),
    ("hermes", tagged('{"name": "x"}'), [("x", {})], ""),
    ("hermes", tagged('{"name": "x", "arguments": null}'), [("x", {})], ""),
    (
        "hermes",
        tagged('{"name": "x", "arguments": {"a": "</tool_call>"}}'),
        [("x", {"a": "</tool_call>"})],
        "",
    ),
    ("hermes", "<tool_call>" + tagged('{"name": "x"}'), [("x", {})], "<tool_call>"),
    (
        "hermes",
        tagged('{"name": "x", "arguments": {"a": 1}, oops}'),
        [("x", {"a": 1})],
        ", oops}</tool_call>",
    ),
    ("hermes", f"{FENCED}\n{FENCED}\nDone.\n```py\n1\n```", [OSLO] * 2, "Done.\n```py\n1\n```"),
    ("llama", f"{WEATHER}; {WEATHER}", [OSLO] * 2, ""),
    ("llama", f" {WEATHER}\n{WEATHER};", [OSLO] * 2, ""),
    ("llama", f"<|python_tag|>{WEATHER}; {WEATHER}", [OSLO] * 2, ""),
    ("llama", f"{WEATHER}<|python_tag|>{WEATHER}", [OSLO] * 2, ""),
    ("llama", '{"type": "function", "name": "now", "parameters": {}}', [("now", {})], ""),
    (
        "mistral",
        'So: [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]',
        F_AND_G,
        "So:",
    ),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"},{"name": "g"}]',
        F_AND_G,
        "",
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', F_AND_G, ""),
    (
        "mistral",
        '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]bcdefghij[ARGS]{}',
        F_AND_G,
        "",
    ),
    ("mistral", '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g {}', F_AND_G, ""),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, oops]',
        [("f", {})],
        ", oops]",
    ),
    (
        "pythonic",
        ' [ f( class = "x" , y=2 ), a.g-h() ]\nDone.',
        [("f", {"class": "x", "y": 2}), ("a.g-h", {})],
        "Done.",
    ),
]

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
        tagged("now()"),
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
}


@pytest.mark.parametrize(("name", "text", "calls", "content"), READ)
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


def test_a_malformed_call_between_words_is_content() -> None:
    text = f"a {tagged('now()')} b"

    assert parsed("hermes", text) == Read(content=text)


def test_arguments_come_in_pieces_as_the_model_wrote_them() -> None:
    pieces = ['<tool_call>{"name": "x", "arguments": {', '"a" :  "é', "\\", '"}"', ", 1", "}}"]

    def parse(text: Incoming, out: Message) -> Steps[None]:
        return FORMATS["hermes"].read(text, out, TOOLS)

    moments = run(parse, pieces)

    assert [moment.calls[0].arguments for moment in moments[:6]] == [
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
