"""The real openai SDK puts calls and reasoning together, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion

from picospec.gateway.errors import InvalidRequest
from picospec.gateway.ports import Job
from tests.gateway.scripted import MODEL, ByteTokenizer, ScriptedEngine, make_app, served

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


@asynccontextmanager
async def sdk(
    text: str, tokenizer: ByteTokenizer = HERMES, **settings: object
) -> AsyncIterator[AsyncOpenAI]:
    """Give a client of a model that writes `text`, three bytes a Delta."""
    data = text.encode()
    engine = ScriptedEngine([data[at : at + 3] for at in range(0, len(data), 3)])
    app = make_app(engine, tokenizer=tokenizer, **settings)
    async with (
        served(app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


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
    async with sdk(TWO) as client:
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
    async with sdk(CALL % "Oslo") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[WEATHER], stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]

    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    first, *later = pieces
    assert (first.index, first.type, first.function.name) == (0, "function", "weather")
    assert first.function.arguments == ""
    assert [piece.function.arguments for piece in later][:3] == ['{"c', "ity", '": ']
    assert {(piece.index, piece.id, piece.type) for piece in later} == {(0, None, None)}
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    assert not any(chunk.delta.content for chunk in chunks)


@pytest.mark.parametrize("ask", [streamed, asked])
@pytest.mark.parametrize("request_", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_to_choose_from_everything_is_content(
    ask: type, request_: dict[str, object]
) -> None:
    async with sdk(TWO) as client:
        answer = await ask(client, **request_)

    message = answer.choices[0].message
    assert (message.content, message.tool_calls) == (TWO, None)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("ask", [streamed, asked])
async def test_reasoning_is_apart_from_content_and_counted(ask: type) -> None:
    async with sdk("<think>\nwhy\n</think>\n\nHi", THINKING) as client:
        answer = await ask(client)

    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hi", "why")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 14


@pytest.mark.parametrize(
    ("request_", "grammar"),
    [
        ({"tools": [WEATHER]}, None),
        ({"tools": [WEATHER], "tool_choice": "required"}, '"<tool_call>" calls'),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "response_format": {"type": "json_object"},
            },
            '"<tool_call>" calls',
        ),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "content |"),
    ],
)
async def test_calls_that_must_be_are_made_by_a_grammar(
    request_: dict[str, object], grammar: str | None
) -> None:
    jobs: list[Job] = []

    def script(job: Job) -> list[bytes]:
        jobs.append(job)
        return [(CALL % "Oslo").encode()]

    engine = ScriptedEngine(script, features=frozenset({"structured_outputs"}))
    async with (
        served(make_app(engine, tokenizer=HERMES)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        await asked(client, **request_)

    constraint = jobs[0].extras.get("structured_outputs")
    assert (constraint is None) == (grammar is None)
    if grammar is not None:
        assert grammar in constraint["grammar"]


async def test_a_grammar_that_cannot_be_made_of_the_tools_names_them() -> None:
    wrong = InvalidRequest(
        "structured_outputs.grammar: 3(1): wrong", param="structured_outputs.grammar"
    )
    engine = ScriptedEngine((), then=wrong, features=frozenset({"structured_outputs"}))
    async with (
        served(make_app(engine, tokenizer=HERMES)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        with pytest.raises(BadRequestError, match=r"tools: 3\(1\): wrong") as caught:
            await asked(client, tools=[WEATHER], tool_choice="required")

    assert caught.value.param == "tools"


async def test_a_schema_that_the_format_cannot_express_is_an_error_of_the_tools() -> None:
    function = {"name": "f", "parameters": {"anyOf": [{"required": ["a"]}]}}
    tool = {"type": "function", "function": function}
    engine = ScriptedEngine(features=frozenset({"structured_outputs"}))
    tokenizer = ByteTokenizer(template="<function=")
    async with (
        served(make_app(engine, tokenizer=tokenizer)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        with pytest.raises(BadRequestError, match="anyOf") as caught:
            await asked(client, tools=[tool], tool_choice="required")

    assert caught.value.param == "tools"
