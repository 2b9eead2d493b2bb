"""The real openai SDK against the API, served by uvicorn on loopback."""

from __future__ import annotations

import json

import openai
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from picospec.gateway import grammars
from picospec.gateway.errors import EngineFault, InvalidRequest, Overloaded, Unavailable
from picospec.gateway.ports import Job
from tests.gateway.scripted import MODEL, Body, ByteTokenizer, ScriptedEngine, sdk, writes

ASK = [{"role": "user", "content": "Hello"}]


async def asked(engine: ScriptedEngine | None = None, **request: object) -> ChatCompletion:
    async with sdk(engine or ScriptedEngine()) as client:
        return await client.chat.completions.create(model=MODEL, messages=ASK, **request)


async def streamed(
    engine: ScriptedEngine | None = None, **request: object
) -> list[ChatCompletionChunk]:
    async with sdk(engine or ScriptedEngine()) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, **request
        )
        return [chunk async for chunk in stream]


def seeded(job: Job) -> list[bytes]:
    return [f"{job.seed}".encode(), b"!"]


async def test_a_chat_completion_carries_text_usage_and_speculation_statistics() -> None:
    answer = await asked()

    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hi there")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 9)
    assert answer.usage.total_tokens == 17
    assert answer.metrics["speculative_decoding"] == {
        "mean_acceptance_length": pytest.approx(1 + 7 / 3),
        "draft_acceptance_rate": pytest.approx(7 / 12),
        "acceptance_histogram": [0, 0, 2, 1],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 7,
        "num_draft_tokens": 12,
        "num_target_passes": 4,
        "num_accepted_tokens_per_pos": [3, 3, 1],
    }
    assert (answer.timings["draft_n"], answer.timings["draft_n_accepted"]) == (12, 7)


async def test_a_stream_has_role_content_finish_and_statistics_in_this_order() -> None:
    chunks = await streamed(stream_options={"include_obfuscation": True})

    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hi", " there", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].timings["draft_n"] == 12
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


async def test_the_usage_chunk_comes_last_and_has_no_choices() -> None:
    chunks = await streamed(stream_options={"include_usage": True})

    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 9
    assert chunks[-1].metrics["speculative_decoding"]["num_draft_tokens"] == 12


async def test_each_chunk_may_have_the_usage_so_far() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    counts = [chunk.usage.completion_tokens for chunk in await streamed(stream_options=options)]

    assert counts == sorted(counts)
    assert {2, 8, 9} <= set(counts)


async def test_each_choice_has_its_own_seed_and_is_the_same_streamed_or_not() -> None:
    whole = await asked(ScriptedEngine(seeded), n=3, seed=2**63 - 1)
    texts = ["", "", ""]
    for chunk in await streamed(ScriptedEngine(seeded), n=3, seed=2**63 - 1):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [f"{2**63 - 1 + index}!" for index in range(3)]
    assert [choice.message.content for choice in whole.choices] == texts


async def test_chat_logprobs_are_in_openais_shape() -> None:
    answer = await asked(ScriptedEngine(["é".encode()]), logprobs=True, top_logprobs=2)

    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("\\xc3", [0xC3], -0.5)
    assert [top.token for top in first.top_logprobs] == ["\\xc3", "x"]
    assert first.top_logprobs[1].logprob == -9999.0
    assert second.bytes == [0xA9]


async def test_streamed_logprobs_add_up_to_the_whole() -> None:
    chunks = await streamed(logprobs=True)

    logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert "".join(entry.token for each in logprobs for entry in each.content) == "Hi there"


async def test_a_stop_string_across_tokens_ends_the_text_and_keeps_the_statistics() -> None:
    engine = ScriptedEngine([b"one t", b"wo three"])

    answer = await asked(engine, stop=["two"])

    assert answer.choices[0].message.content == "one "
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 7)
    assert answer.metrics["speculative_decoding"]["num_draft_tokens"] == 12
    assert engine.closed.locked() is False


async def test_completions_take_several_prompts_of_text_or_of_tokens() -> None:
    engine = ScriptedEngine(lambda job: [bytes(job.prompt)])
    async with sdk(engine) as client:
        await client.completions.create(model=MODEL, prompt=[0], logprobs=20)
        none = await client.completions.create(
            model=MODEL, prompt=["a", "b"], n=8, logprobs=0, echo=False, best_of=1
        )
        texts = await client.completions.create(model=MODEL, prompt=["ab", "c"], n=2)
        tokens = await client.completions.create(model=MODEL, prompt=[[100, 101], [102]])
        one = await client.completions.create(model=MODEL, prompt=[103])

    assert [choice.text for choice in texts.choices] == ["ab", "ab", "c", "c"]
    assert [choice.text for choice in tokens.choices] == ["de", "f"]
    assert one.choices[0].text == "g"
    assert none.choices[15].logprobs.top_logprobs == [None]
    assert texts.usage.prompt_tokens == 3
    assert {job.max_tokens for job in engine.jobs} == {16}


async def test_completion_logprobs_are_in_the_older_shape() -> None:
    async with sdk(ScriptedEngine(["aé".encode()])) as client:
        answer = await client.completions.create(model=MODEL, prompt="p", logprobs=1)

    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.text_offset == [0, 1, 1]
    assert logprobs.top_logprobs[0] == {"a": -0.5}
    assert logprobs.token_logprobs == [-0.5, -0.5, -0.5]


async def test_an_answer_can_be_sent_back_as_part_of_the_conversation() -> None:
    engine = ScriptedEngine([b"ok"])
    async with sdk(engine) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=ASK)
        parts = {"role": "user", "content": [{"type": "text", "text": t} for t in ("x", "y")]}
        system = {"role": "developer", "content": "z"}
        await client.chat.completions.create(
            model=MODEL, messages=[system, *ASK, answer.choices[0].message, parts]
        )

    assert bytes(engine.jobs[1].prompt) == b"d:z\nu:Hello\na:ok\nu:x\ny\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("then", "kind", "retry_after"),
    [
        (Overloaded("busy", retry_after_s=3), openai.RateLimitError, "3"),
        (Overloaded("full"), openai.RateLimitError, "1"),
        (Unavailable("no verifier"), openai.InternalServerError, None),
        (EngineFault("a bug"), openai.InternalServerError, None),
        (InvalidRequest("no", param="x"), openai.BadRequestError, None),
        (RuntimeError("a bug"), openai.InternalServerError, None),
    ],
)
async def test_an_error_before_the_first_token_has_its_own_status_streamed_or_not(
    then: Exception, kind: type[openai.APIStatusError], retry_after: str | None, stream: bool
) -> None:
    engine = ScriptedEngine(script=(), then=then)

    with pytest.raises(kind) as caught:
        await asked(engine, stream=stream)

    assert caught.value.response.headers.get("retry-after") == retry_after
    assert engine.closed.locked() is False


@pytest.mark.parametrize("then", [Unavailable("the verifier went away"), RuntimeError("a bug")])
async def test_an_error_after_the_first_token_is_an_event_in_the_stream(
    then: Exception,
) -> None:
    seen: list[str] = []
    async with sdk(ScriptedEngine(then=then)) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        with pytest.raises(openai.APIError):  # noqa: PT012
            async for chunk in stream:
                seen.append(chunk.choices[0].delta.content or "")

    assert "".join(seen) == "Hi there"


# The real openai SDK puts calls and reasoning together, streamed or not.

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


async def calls_sdk_streamed(client: AsyncOpenAI, **request: object) -> ChatCompletion:
    """Return what the SDK's own accumulator makes of a stream."""
    async with client.chat.completions.stream(
        model=MODEL, messages=ASK, stream_options={"include_usage": True}, **request
    ) as stream:
        return await stream.get_final_completion()


async def calls_sdk_asked(client: AsyncOpenAI, **request: object) -> ChatCompletion:
    return await client.chat.completions.create(model=MODEL, messages=ASK, **request)


@pytest.mark.parametrize("ask", [calls_sdk_streamed, calls_sdk_asked])
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
        stream = await calls_sdk_asked(client, tools=[WEATHER], stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]

    first, *later = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (first.index, first.type, first.function.name) == (0, "function", "weather")
    assert first.function.arguments == ""
    assert [piece.function.arguments for piece in later][:3] == ['{"c', "ity", '": ']
    assert {(piece.index, piece.id, piece.type) for piece in later} == {(0, None, None)}
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    assert not any(chunk.delta.content for chunk in chunks)


@pytest.mark.parametrize("ask", [calls_sdk_streamed, calls_sdk_asked])
@pytest.mark.parametrize("request_", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_to_choose_from_everything_is_content(
    ask: type, request_: Body
) -> None:
    async with sdk(writes(TWO), tokenizer=HERMES) as client:
        answer = await ask(client, **request_)

    message = answer.choices[0].message
    assert (message.content, message.tool_calls) == (TWO, None)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("ask", [calls_sdk_streamed, calls_sdk_asked])
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
        await calls_sdk_asked(client, tools=[WEATHER], **request_)

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
            await calls_sdk_asked(client, tools=[tool], tool_choice="required")

    assert caught.value.param == "tools"
