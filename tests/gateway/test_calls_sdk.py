"""The real openai SDK puts calls and reasoning together, streamed or not."""

from __future__ import annotations

import json

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion

from picospec.gateway import grammars
from picospec.gateway.errors import InvalidRequest
from tests.gateway.openai_sdk import sdk, writes
from tests.gateway.scripted import MODEL, Body, ByteTokenizer, ScriptedEngine

ASK = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
TWO = f"Let me see.\n{CALL % 'Oslo'}\n{CALL % 'Rom'}"
HERMES = ByteTokenizer(template="<tool_call>")
THINKING = ByteTokenizer(template="<think><tool_call>")
GRAMMAR = frozenset({grammars.NAME})
JSON = {"response_format": {"type": "json_object"}}


async def streamed(client: AsyncOpenAI, **request: object) -> ChatCompletion:
    """Return what the SDK's own accumulator makes of a stream."""
    async with client.chat.completions.stream(
        model=MODEL, messages=ASK, stream_options={"include_usage": True}, **request
    ) as stream:
        return await stream.get_final_completion()


async def asked(client: AsyncOpenAI, **request: object) -> ChatCompletion:
    return await client.chat.completions.create(model=MODEL, messages=ASK, **request)


@pytest.mark.parametrize("ask", [streamed, asked])
async def test_calls_are_the_same_streamed_or_not(ask: type) -> None:
    async with sdk(writes(TWO), tokenizer=HERMES) as client:
        answer = await ask(client, tools=[WEATHER])

    [choice] = answer.choices
    calls = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rom"]
    assert len({call.id for call in calls}) == 2
    assert {call.type for call in calls} == {"function"}
    assert answer.usage.completion_tokens == len(TWO) + 1


async def test_a_stream_shows_the_name_first_and_then_arguments_as_they_come() -> None:
    async with sdk(writes(CALL % "Oslo"), tokenizer=HERMES) as client:
        stream = await asked(client, tools=[WEATHER], stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]

    first, *later = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (first.index, first.type, first.function.name) == (0, "function", "weather")
    assert first.function.arguments == ""
    assert [piece.function.arguments for piece in later][:3] == ['{"c', "ity", '": ']
    assert {(piece.index, piece.id, piece.type) for piece in later} == {(0, None, None)}
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    assert not any(chunk.delta.content for chunk in chunks)


@pytest.mark.parametrize("ask", [streamed, asked])
@pytest.mark.parametrize("request_", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_to_choose_from_everything_is_content(
    ask: type, request_: Body
) -> None:
    async with sdk(writes(TWO), tokenizer=HERMES) as client:
        answer = await ask(client, **request_)

    message = answer.choices[0].message
    assert (message.content, message.tool_calls) == (TWO, None)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("ask", [streamed, asked])
async def test_reasoning_is_apart_from_content_and_counted(ask: type) -> None:
    async with sdk(writes("<think>\nwhy\n</think>\n\nHi"), tokenizer=THINKING) as client:
        answer = await ask(client)

    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hi", "why")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 14


@pytest.mark.parametrize(
    ("request_", "grammar"),
    [
        ({}, None),
        ({"tool_choice": "required"}, '"<tool_call>" calls'),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}, **JSON},
            '"<tool_call>" calls',
        ),
        (JSON, "content |"),
    ],
)
async def test_calls_that_must_be_are_made_by_a_grammar(
    request_: Body, grammar: str | None
) -> None:
    engine = writes(CALL % "Oslo", features=GRAMMAR)
    async with sdk(engine, tokenizer=HERMES) as client:
        await asked(client, tools=[WEATHER], **request_)

    constraint = engine.jobs[0].extras.get(grammars.NAME)
    assert (constraint is None) == (grammar is None)
    if grammar is not None:
        assert grammar in constraint["grammar"]


PARAM = f"{grammars.NAME}.grammar"
WRONG = InvalidRequest(f"{PARAM}: 3(1): wrong", param=PARAM)
HARD = {"name": "f", "parameters": {"anyOf": [{"required": ["a"]}]}}


@pytest.mark.parametrize(
    ("then", "template", "tool", "says"),
    [
        (WRONG, "<tool_call>", WEATHER, r"tools: 3\(1\): wrong"),
        (None, "<function=", {"type": "function", "function": HARD}, "anyOf"),
    ],
    ids=["the engine cannot compile", "the format cannot express"],
)
async def test_a_grammar_that_cannot_be_made_of_the_tools_names_them(
    then: Exception | None, template: str, tool: Body, says: str
) -> None:
    engine = ScriptedEngine((), then, GRAMMAR)
    async with sdk(engine, tokenizer=ByteTokenizer(template=template)) as client:
        with pytest.raises(BadRequestError, match=says) as caught:
            await asked(client, tools=[tool], tool_choice="required")

    assert caught.value.param == "tools"
