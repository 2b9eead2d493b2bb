"""Custom tools take a text; an answer may be allowed fewer tools than the model is shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from picospec.gateway import grammars
from picospec.gateway.output.message import CustomInput
from tests.gateway.meaning import job_of
from tests.gateway.openai_sdk import sdk, writes
from tests.gateway.output.grammars import Grammar
from tests.gateway.output.reading import CUTS, split
from tests.gateway.scripted import Body, ByteTokenizer, ScriptedEngine, ask, refusal
from tests.gateway.test_calls_sdk import CALL, GRAMMAR, HERMES, THINKING, WEATHER, asked

USER = {"role": "user", "content": "Hi"}
PLAIN = {"type": "custom", "custom": {"name": "patch", "description": "Patches."}}
NAMED = {"type": "custom", "custom": {"name": "patch"}}
UNNAMED = {"type": "allowed_tools"}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
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
        answer = await asked(client, tools=[PLAIN, WEATHER])
        stream = await asked(client, tools=[PLAIN, WEATHER], stream=True)
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
    engine = ScriptedEngine([f"{thought}aa".encode()], features=GRAMMAR)
    body = {"messages": [USER], "tools": [LARK], "tool_choice": NAMED, "stream": stream}

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
    job = await job_of(body, ScriptedEngine(features=GRAMMAR), tokenizer)

    seen = tokenizer.rendered[0]
    parameters = seen["tools"][0]["function"]["parameters"]
    assert parameters["properties"] == {"input": {"type": "string", "pattern": "^(?:a+)$"}}
    assert seen["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"input": "x"}
    assert "a+" in job.extras[grammars.NAME]["grammar"]


async def test_of_the_tools_that_are_shown_only_those_allowed_may_be_called() -> None:
    tokenizer = ByteTokenizer()
    body = {"messages": [USER], "tools": [PLAIN, WEATHER], "tool_choice": ALLOWED}

    job = await job_of(body, ScriptedEngine(features=GRAMMAR), tokenizer)

    grammar = job.extras[grammars.NAME]["grammar"]
    shown = [each["function"]["name"] for each in tokenizer.rendered[0]["tools"]]
    assert shown == ["patch", "weather"]
    assert [word in grammar for word in ("patch", "weather", "free")] == [True, False, True]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_in_lark_has_a_call_of_its_own_beside_other_tools(stream: bool) -> None:
    said = f'Well.\n<tool_call>\n{{"name": "patch"}}\naa\n</tool_call>\n{CALL % "Oslo"}'
    engine = ScriptedEngine([bytes([byte]) for byte in said.encode()], features=GRAMMAR)
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
    engine = ScriptedEngine(features=GRAMMAR)
    llama = ByteTokenizer(template='{"name": function name, "parameters": dictionary}')

    answer = await ask({"messages": [USER], "tools": [LARK]}, engine, tokenizer=llama)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert "tool_choice" in answer.text


NONE = frozenset[str]()
BAD = [
    (GRAMMAR, {"tools": [{"type": "custom"}]}, "tools.0.custom"),
    (GRAMMAR, {"tools": [PLAIN], "tool_choice": {"type": "custom"}}, "tool_choice.custom"),
    (GRAMMAR, {"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
    (GRAMMAR, {"tools": [WEATHER], "tool_choice": ALLOWED}, "tool_choice"),
    (GRAMMAR, {"tools": [PLAIN], "tool_choice": UNNAMED}, "tool_choice.allowed_tools"),
    (GRAMMAR, {"grammar": 'root ::= "a"'}, "grammar"),
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
