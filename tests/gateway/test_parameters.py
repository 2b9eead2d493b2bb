"""Parameters beyond the schemas: harmless ones pass, served ones are checked and passed on."""

from __future__ import annotations

import pytest

from gateway.ports import Sampling
from gateway.routes.parameters import SERVABLE
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    ScriptedEngine,
    client_of,
    make_app,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
ALL = frozenset(SERVABLE)
EXTREMES = [
    {"temperature": 0},
    {"temperature": 2, "top_p": 1e-9, "top_k": -1, "min_p": 0, "seed": -(2**63)},
    {"top_p": 1, "top_k": 2**31 - 1, "min_p": 1, "seed": 2**63 - 1},
    {"n": 8, "max_tokens": 1, "stop": ["a", "b", "c", "d" * 512]},
    {"max_completion_tokens": CONTEXT_TOKENS - len("u:Hello\n")},
    {"max_completion_tokens": 1},
    {"messages": [{"role": "user", "content": "a" * (CONTEXT_TOKENS - len("u:\n") - 1)}]},
    {"logprobs": True, "top_logprobs": 20},
    {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 2},
    {"repetition_penalty": 1e-9, "logit_bias": {"0": -100, "256": 100}},
    {"min_tokens": 8, "max_tokens": 8},
    {"response_format": {"type": "json_object"}},
]
SCHEMA_ONLY = {"json_schema": {"name": "s", "schema": {"type": "object"}}}
SCHEMA = {"type": "json_schema", **SCHEMA_ONLY}


async def post(engine: ScriptedEngine, change: dict[str, object]) -> tuple[int, object]:
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT | change)
    return answer.status_code, answer.json().get("error", {}).get("param")


async def test_parameters_and_values_that_change_nothing_are_accepted() -> None:
    engine = ScriptedEngine()
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "parallel_tool_calls": True,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1,
        "min_tokens": 0,
        "ignore_eos": False,
        "functions": [],
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
        "audio": None,
        "stop": None,
        "seed": None,
    }

    status, _ = await post(engine, harmless)

    assert status == 200
    assert engine.jobs[0].extras == {}
    assert engine.jobs[0].seed == 41
    assert engine.jobs[0].sampling == Sampling()
    assert engine.jobs[0].max_tokens == CONTEXT_TOKENS - len("u:Hello\n")


@pytest.mark.parametrize("change", EXTREMES)
async def test_the_extreme_values_of_each_range_are_accepted(change: dict[str, object]) -> None:
    assert (await post(ScriptedEngine(features=ALL), change))[0] == 200


async def test_the_settings_of_a_request_reach_the_engine() -> None:
    engine = ScriptedEngine()

    await post(engine, {"temperature": 0.5, "min_p": 0.1, "top_k": 3, "top_p": 0.9})
    await post(engine, {"top_k": -1, "max_completion_tokens": 5, "logprobs": True})

    assert engine.jobs[0].sampling == Sampling(0.5, min_p=0.1, top_k=3, top_p=0.9)
    assert engine.jobs[1].sampling == Sampling(top_k=0)
    assert (engine.jobs[1].max_tokens, engine.jobs[1].top_logprobs) == (5, 0)


async def test_a_false_is_not_the_number_that_changes_nothing() -> None:
    status, param = await post(ScriptedEngine(), {"presence_penalty": False})

    assert (status, param) == (400, "presence_penalty")


async def test_what_the_engine_serves_reaches_it_as_the_client_sent_it() -> None:
    engine = ScriptedEngine(features=ALL)

    status, _ = await post(
        engine,
        {
            "presence_penalty": 1,
            "repetition_penalty": 1.5,
            "logit_bias": {"5": -100},
            "response_format": SCHEMA,
            "min_tokens": 2,
            "ignore_eos": True,
        },
    )

    assert status == 200
    assert engine.jobs[0].extras == {
        "presence_penalty": 1.0,
        "repetition_penalty": 1.5,
        "logit_bias": {5: -100.0},
        "response_format": SCHEMA,
        "min_tokens": 2,
        "ignore_eos": True,
    }


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"repetition_penalty": 2.5}, "repetition_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five.[key]"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias.5"),
        ({"logit_bias": {"5": -100.5}}, "logit_bias.5"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
        ({"logit_bias": {"257": 1}}, "logit_bias.257"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", **SCHEMA_ONLY}}, "response_format.json_schema"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": "1"}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"tools": [{}]}, "tools"),
    ],
)
async def test_a_served_parameter_with_a_bad_value_is_a_400(
    change: dict[str, object], param: str
) -> None:
    engine = ScriptedEngine(features=ALL)

    status, named = await post(engine, change)

    assert (status, named) == (400, param)
    assert engine.jobs == []
