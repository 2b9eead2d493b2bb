"""What holds for every format: nothing is lost or taken back, and pieces do not matter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.output.formats.base import pass_content
from picospec.gateway.output.style import FORMATS, FormatName
from tests.gateway.output.reading import CUTS, TOOLS, Read, Tools, moments, read, run, split

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


# What models write is read as the calls they mean, and anything else is content.

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
