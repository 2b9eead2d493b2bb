"""The real openai SDK against the API, served by uvicorn on loopback."""

from __future__ import annotations

import json

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import EngineFault, InvalidRequest, Overloaded, Unavailable
from gateway.ports import Job
from tests.gateway.scripted import CALL, HERMES, MODEL, WEATHER, ScriptedEngine, sdk, writes

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


async def test_each_choice_has_its_own_seed_and_is_the_same_streamed_or_not() -> None:
    whole = await asked(ScriptedEngine(seeded), n=3, seed=2**63 - 1)
    texts = ["", "", ""]
    for chunk in await streamed(ScriptedEngine(seeded), n=3, seed=2**63 - 1):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""

    assert texts == [f"{2**63 - 1 + index}!" for index in range(3)]
    assert [choice.message.content for choice in whole.choices] == texts


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

TWO = f"Let me see.\n{CALL % 'Oslo'}\n{CALL % 'Rom'}"


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
