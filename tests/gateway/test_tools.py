"""Tools: what the template shows, what the answer may call, and what is no tool."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from picospec.gateway import grammars
from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.tools import ToolUse
from picospec.gateway.output.message import CustomInput
from tests.gateway.output.reading import CUTS, Grammar, split
from tests.gateway.scripted import (
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    job_of,
    refusal,
    sdk,
    writes,
)
from tests.gateway.test_sdk import CALL, HERMES, THINKING, WEATHER, calls_sdk_asked
from tests.gateway.test_sdk import GRAMMAR as CUSTOM_TOOLS_GRAMMAR

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
F = {"name": "f", "description": "Adds.", "parameters": SCHEMA}
TOOL_F = {"type": "function", "function": F}
TOOL_G = {"type": "function", "function": {"name": "g", "parameters": None}}
SHOWN_G = {
    "type": "function",
    "function": {"name": "g", "description": None, "parameters": None},
}
NAMED = {"type": "function", "function": {"name": "g"}}
GRAMMAR = frozenset({grammars.NAME})


def use_of(**body: object) -> ToolUse:
    return ChatRequest.model_validate({"messages": [USER], **body}).tool_use


def strict(**function: object) -> Body:
    return {"type": "function", "function": {**F, "strict": True, **function}}


def test_the_use_of_tools_is_what_the_request_says() -> None:
    two = {"tools": [TOOL_F, TOOL_G]}
    shown = (TOOL_F, SHOWN_G)

    assert use_of() == use_of(tools=[]) == ToolUse()
    assert use_of(**two, tool_choice="none") == ToolUse(shown)
    assert use_of(**two, tool_choice="none").callable == ()
    assert use_of(tools=[], tool_choice="auto") == ToolUse()
    assert use_of(**two) == use_of(**two, tool_choice="auto") == ToolUse(shown, "auto")
    assert use_of(**two, tool_choice="required") == ToolUse(shown, "required")
    assert use_of(**two, parallel_tool_calls=False).parallel is False
    assert use_of(**two, tool_choice=NAMED) == ToolUse(shown, "required", "g", parallel=False)
    assert use_of(tools=[strict(), TOOL_G]).strict == {"f"}


def test_what_the_template_shows_has_no_field_that_it_does_not_know() -> None:
    tool = {"type": "function", "function": {**F, "strict": True, "x": 1}, "defer": True}

    assert use_of(tools=[tool]).tools == (strict(),)


@pytest.mark.parametrize(
    ("choice", "hides", "expected"),
    [
        ("auto", False, (TOOL_F,)),
        ("none", False, (TOOL_F,)),
        ("required", False, (TOOL_F,)),
        ("none", True, ()),
    ],
)
async def test_the_template_gets_the_tools_unless_the_target_hides_unused_ones(
    choice: str, hides: bool, expected: object
) -> None:
    tokenizer = ByteTokenizer(hides_unused_tools=hides)
    body = {"messages": [USER], "tools": [TOOL_F], "tool_choice": choice}

    await ask(body, ScriptedEngine(features=GRAMMAR), tokenizer=tokenizer)

    assert tokenizer.rendered[0]["tools"] == expected


async def test_tools_without_a_place_in_the_template_are_a_400() -> None:
    body = {"messages": [USER], "tools": [TOOL_F]}

    answers = [
        await ask(body | {"tool_choice": choice}, tokenizer=ByteTokenizer(takes_tools=False))
        for choice in ("auto", "none")
    ]

    assert [answer.status_code for answer in answers] == [400, 200]
    assert answers[0].json()["error"]["param"] == "tools"


NEEDS_GRAMMAR = [
    ({"tools": [TOOL_F], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL_F, TOOL_G], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [TOOL_G, strict()]}, "tools.1.function.strict"),
]


@pytest.mark.parametrize(("body", "param"), NEEDS_GRAMMAR)
async def test_a_promise_that_only_a_grammar_keeps_needs_an_engine_with_one(
    body: Body, param: str
) -> None:
    answers = [
        await ask({"messages": [USER], **body}, ScriptedEngine(features=features))
        for features in (frozenset(), GRAMMAR)
    ]

    assert [answer.status_code for answer in answers] == [400, 200]
    error = answers[0].json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


# Custom tools take a text; an answer may be allowed fewer tools than the model is shown.

PLAIN = {"type": "custom", "custom": {"name": "patch", "description": "Patches."}}
CUSTOM_TOOLS_NAMED = {"type": "custom", "custom": {"name": "patch"}}
UNNAMED = {"type": "allowed_tools"}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [CUSTOM_TOOLS_NAMED]},
}
INPUT = 'a "b"\nü'
TEXT = '<tool_call>\n{"name": "patch", "arguments": %s}\n</tool_call>'


def custom(syntax: str, definition: str) -> Body:
    grammar = {"syntax": syntax, "definition": definition}
    form = {"type": "grammar", "grammar": grammar}
    return {"type": "custom", "custom": {**PLAIN["custom"], "format": form}}


LARK = custom("lark", 'start: "a"+')


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


async def test_calls_of_both_kinds_are_the_same_streamed_or_not() -> None:
    written = f"{TEXT % json.dumps({'input': INPUT})}\n{CALL % 'Oslo'}"
    async with sdk(writes(written), tokenizer=HERMES) as client:
        answer = await calls_sdk_asked(client, tools=[PLAIN, WEATHER])
        stream = await calls_sdk_asked(client, tools=[PLAIN, WEATHER], stream=True)
        deltas = [chunk.choices[0].delta.model_dump() async for chunk in stream]

    first, second = (call.model_dump() for call in answer.choices[0].message.tool_calls)
    pieces = [call for delta in deltas for call in delta["tool_calls"] or ()]
    texts = [piece["custom"]["input"] for piece in pieces if piece["index"] == 0]
    assert (first["type"], first["custom"]) == ("custom", {"name": "patch", "input": INPUT})
    assert second["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert pieces[0]["custom"] == {"name": "patch", "input": ""}
    assert "".join(texts) == INPUT
    assert len(texts) > 2


@pytest.mark.parametrize("tokenizer", [HERMES, THINKING])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_in_lark_is_the_whole_answer(
    tokenizer: ByteTokenizer, stream: bool
) -> None:
    thought = "<think>So.</think>" if tokenizer is THINKING else ""
    engine = ScriptedEngine([f"{thought}aa".encode()], features=CUSTOM_TOOLS_GRAMMAR)
    body = {
        "messages": [USER],
        "tools": [LARK],
        "tool_choice": CUSTOM_TOOLS_NAMED,
        "stream": stream,
    }

    answer = await ask(body, engine, tokenizer=tokenizer)

    [job] = engine.jobs
    assert 'start: "a"+' in job.extras[grammars.NAME]["grammar"]
    assert '"finish_reason":"tool_calls"' in answer.text
    assert '"type":"custom"' in answer.text
    if not stream:
        [call] = answer.json()["choices"][0]["message"]["tool_calls"]
        assert call["custom"] == {"name": "patch", "input": "aa"}


async def test_the_model_is_shown_a_function_of_a_text() -> None:
    tokenizer = ByteTokenizer()
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    said = {"role": "assistant", "tool_calls": [call]}

    body = {"messages": [USER, said], "tools": [custom("regex", "a+")]}
    job = await job_of(body, ScriptedEngine(features=CUSTOM_TOOLS_GRAMMAR), tokenizer)

    seen = tokenizer.rendered[0]
    parameters = seen["tools"][0]["function"]["parameters"]
    assert parameters["properties"] == {"input": {"type": "string", "pattern": "^(?:a+)$"}}
    assert seen["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"input": "x"}
    assert "a+" in job.extras[grammars.NAME]["grammar"]


async def test_of_the_tools_that_are_shown_only_those_allowed_may_be_called() -> None:
    tokenizer = ByteTokenizer()
    body = {"messages": [USER], "tools": [PLAIN, WEATHER], "tool_choice": ALLOWED}

    job = await job_of(body, ScriptedEngine(features=CUSTOM_TOOLS_GRAMMAR), tokenizer)

    grammar = job.extras[grammars.NAME]["grammar"]
    shown = [each["function"]["name"] for each in tokenizer.rendered[0]["tools"]]
    assert shown == ["patch", "weather"]
    assert [word in grammar for word in ("patch", "weather", "free")] == [True, False, True]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_in_lark_has_a_call_of_its_own_beside_other_tools(stream: bool) -> None:
    said = f'Well.\n<tool_call>\n{{"name": "patch"}}\naa\n</tool_call>\n{CALL % "Oslo"}'
    engine = ScriptedEngine(
        [bytes([byte]) for byte in said.encode()], features=CUSTOM_TOOLS_GRAMMAR
    )
    body = {"messages": [USER], "tools": [LARK, WEATHER], "stream": stream}

    answer = await ask(body, engine, tokenizer=HERMES)

    grammar = Grammar(engine.jobs[0].extras[grammars.NAME]["grammar"])
    assert grammar.accepts(said)
    assert grammar.accepts('{"name": "weather", "arguments": {"city": "Rom"}}')
    assert not grammar.accepts(said.replace("aa", "ab"))
    assert not grammar.accepts(said.replace('"patch"', '"patch", "arguments": {"input": "aa"}'))
    if not stream:
        first, second = answer.json()["choices"][0]["message"]["tool_calls"]
        assert first["custom"] == {"name": "patch", "input": "aa"}
        assert second["function"]["name"] == "weather"


async def test_a_format_of_calls_without_a_place_for_lark_says_so() -> None:
    engine = ScriptedEngine(features=CUSTOM_TOOLS_GRAMMAR)
    llama = ByteTokenizer(template='{"name": function name, "parameters": dictionary}')

    answer = await ask({"messages": [USER], "tools": [LARK]}, engine, tokenizer=llama)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert "tool_choice" in answer.text


NONE = frozenset[str]()
BAD = [
    (CUSTOM_TOOLS_GRAMMAR, {"tools": [{"type": "custom"}]}, "tools.0.custom"),
    (
        CUSTOM_TOOLS_GRAMMAR,
        {"tools": [PLAIN], "tool_choice": {"type": "custom"}},
        "tool_choice.custom",
    ),
    (
        CUSTOM_TOOLS_GRAMMAR,
        {"tools": [WEATHER], "tool_choice": CUSTOM_TOOLS_NAMED},
        "tool_choice",
    ),
    (CUSTOM_TOOLS_GRAMMAR, {"tools": [WEATHER], "tool_choice": ALLOWED}, "tool_choice"),
    (
        CUSTOM_TOOLS_GRAMMAR,
        {"tools": [PLAIN], "tool_choice": UNNAMED},
        "tool_choice.allowed_tools",
    ),
    (CUSTOM_TOOLS_GRAMMAR, {"grammar": 'root ::= "a"'}, "grammar"),
    (NONE, {"tools": [custom("regex", "a")]}, "tools.0.custom.format"),
    (NONE, {"tools": [PLAIN, WEATHER], "tool_choice": ALLOWED}, "tool_choice"),
]


@pytest.mark.parametrize(("features", "body", "param"), BAD)
async def test_what_an_answer_cannot_be_kept_to_is_a_400(
    features: frozenset[str], body: Body, param: str
) -> None:
    engine = ScriptedEngine(features=features)

    refused = await refusal({"messages": [USER], **body}, engine, tokenizer=THINKING)

    assert refused == (400, param)
