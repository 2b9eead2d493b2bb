"""What cannot change the answer is accepted and named; what would change it is not ignored."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from picospec.gateway.doors.request import SERVABLE
from picospec.gateway.schema import NEUTRAL
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
    refusal,
)

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
OF_CHAT = {
    "messages", "tools", "tool_choice", "chat_template_kwargs", "top_logprobs",
    "continue_final_message", "add_generation_prompt", "thinking_token_budget",
    "thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens",
}  # fmt: skip
NEUTRAL_VALUES = [
    *((name, value) for name, values in NEUTRAL.items() for value in values),
    ("presence_penalty", 0), ("frequency_penalty", 0.0), ("repetition_penalty", 1),
    ("min_tokens", 0), ("ignore_eos", False), ("logit_bias", {}), ("stop_token_ids", []),
    ("response_format", {"type": "text"}), ("grammar", ""), ("guided_json_object", False),
    ("audio", None), ("stop", None), ("seed", None),
]  # fmt: skip
UNSERVED = {
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "repeat_penalty": 1.1,
    "logit_bias": {"5": 3},
    "min_tokens": 1,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a"},
    "guided_json": {},
    "guided_json_object": True,
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": "a",
    "json_schema": {},
    "grammar": "a",
}
"""A value of each parameter that some engine may serve."""


@pytest.mark.parametrize(("name", "value"), NEUTRAL_VALUES)
async def test_a_neutral_value_and_a_null_leave_no_trace(name: str, value: object) -> None:
    engine = ScriptedEngine()

    answer = await ask(CHAT | {name: value}, engine)

    assert answer.status_code == 200
    assert "x-picospec-ignored" not in answer.headers
    (job,) = engine.jobs
    room = CONTEXT_TOKENS - len("u:Hello\n")
    assert (job.extras, job.seed, job.max_tokens) == ({}, 41, room)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, {"any": "other"}) for name in NEUTRAL if name not in OF_CHAT),
        *((name, UNSERVED[name]) for name in sorted({*UNSERVED, *SERVABLE})),
    ],
)
async def test_what_would_change_the_answer_is_a_400_that_names_it(
    name: str, value: object
) -> None:
    engine = ScriptedEngine()

    answer = await ask(CHAT | {name: value}, engine)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"
    assert engine.jobs == []


@pytest.mark.parametrize("name", sorted(OF_CHAT))
async def test_what_only_chats_have_is_a_400_in_a_completion(name: str) -> None:
    engine = ScriptedEngine()

    refused = await refusal({"prompt": "a", name: [1]}, engine, path="/v1/completions")

    assert refused == (400, name)
    assert engine.jobs == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_ignored_is_in_a_header_and_once_in_the_log(stream: bool) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello", "cache_control": {"type": "x"}}] * 2,
        "stream": stream,
        "stream_options": {"chunk_size": 7},
        "response_format": {"type": "text", "style": "plain"},
        "store": True,
        "service_tier": "flex",
        "cache_prompt": True,
        "repeat_last_n": 64,
        "user": "me",
        "colour": "red",
    }
    with capture_logs() as logs:
        answer = await ask(body)

    ignored = (
        "store, service_tier, cache_prompt, repeat_last_n, user, colour, response_format.style,"
        " stream_options.chunk_size, messages.cache_control"
    )
    assert answer.status_code == 200
    assert answer.headers["x-picospec-ignored"] == ignored
    assert [", ".join(entry["ignored"]) for entry in logs] == [ignored]
    assert "x-picospec-ignored" not in (await ask(CHAT | {"stream": stream})).headers


async def test_names_in_the_header_are_few_short_and_clean() -> None:
    names = ["a\r\nset-cookie: b", "é", "c" * 65, "", *(f"field{i}" for i in range(100))]

    with capture_logs() as logs:
        answer = await ask(CHAT | dict.fromkeys(names, 1))

    shown = answer.headers["x-picospec-ignored"].split(", ")
    assert shown == ["?", *(f"field{i}" for i in range(31))]
    assert "set-cookie" not in answer.headers
    assert "cookie" not in repr(logs)


async def test_the_model_may_be_left_out_or_have_another_name() -> None:
    aliases = {"model_aliases": ["gpt-4o", MODEL]}
    answers = [
        await ask(CHAT | body, **aliases)
        for body in ({}, {"model": "gpt-4o"}, {"model": MODEL})
    ]
    unknown = await ask(CHAT | {"model": "gpt-4"}, **aliases)
    answers.append(await ask(CHAT | {"model": "gpt-4"}, accept_any_model=True))

    assert [answer.json()["model"] for answer in answers] == [MODEL] * 4
    assert unknown.status_code == 404


async def test_the_list_of_models_has_every_name() -> None:
    async with client_of(make_app(ScriptedEngine(), model_aliases=["z", "gpt-4o"])) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        found = (await client.get("/v1/models/gpt-4o")).json()
        unknown = await client.get("/v1/models/org/other")

    assert [model["id"] for model in listed] == [MODEL, "gpt-4o", "z"]
    assert {model["root"] for model in listed} == {MODEL}
    assert listed[0]["capabilities"] == ["completion", "tools", "insert"]
    assert listed[0]["max_model_len"] == CONTEXT_TOKENS
    assert found == listed[1]
    assert unknown.status_code == 404


async def test_an_adapter_is_asked_for_as_a_model_is() -> None:
    engine = ScriptedEngine(adapters={"styled": "of-styled"})
    async with client_of(make_app(engine)) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        answer = await client.post("/v1/chat/completions", json=CHAT | {"model": "styled"})

    assert [model["id"] for model in listed] == [MODEL, "styled"]
    assert answer.json()["model"] == "styled"
    assert engine.jobs[0].identity == "of-styled"
