"""Parameters beyond the schemas: harmless ones pass, served ones are checked and passed on."""

from __future__ import annotations

import pytest

from picospec.gateway.doors.parameters import SERVABLE
from picospec.gateway.grammars import structured
from picospec.gateway.ports import Sampling, Statistics
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    ScriptedEngine,
    client_of,
    make_app,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
ALL = frozenset({*SERVABLE, structured.NAME})
EXTREMES = [
    {"temperature": 0},
    {"temperature": 2, "top_p": 1e-9, "top_k": -1, "min_p": 0, "seed": -(2**63)},
    {"top_p": 1, "top_k": 2**31 - 1, "min_p": 1, "seed": 2**63 - 1},
    {"n": 8, "max_tokens": 1, "stop": [*"abcdefghijklmno", "p" * 512]},
    {"max_completion_tokens": CONTEXT_TOKENS - len("u:Hello\n")},
    {"max_completion_tokens": 1},
    {"messages": [{"role": "user", "content": "a" * (CONTEXT_TOKENS - len("u:\n") - 1)}]},
    {"logprobs": True, "top_logprobs": 20},
    {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 2},
    {"repetition_penalty": 0.01, "logit_bias": {"0": -100, "256": 100}},
    {"min_tokens": 8, "max_tokens": 8},
    {"stop_token_ids": [0, 256] * 32},
    {"logit_bias": {str(token): 1 for token in range(257)}},
]


async def post(engine: ScriptedEngine, change: dict[str, object]) -> tuple[int, object]:
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT | change)
    return answer.status_code, answer.json().get("error", {}).get("param")


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


async def test_the_other_names_of_llama_server_mean_the_same() -> None:
    engine = ScriptedEngine(features=ALL)

    await post(
        engine, {"repeat_penalty": 1.5, "n_predict": 3, "n_cmpl": 2, "repeat_last_n": -1}
    )

    assert engine.jobs[0].extras == {"repetition_penalty": 1.5}
    assert [job.max_tokens for job in engine.jobs] == [3, 3]


async def test_minus_one_is_no_limit_and_no_seed() -> None:
    engine = ScriptedEngine()
    async with client_of(make_app(engine)) as client:
        for body in ({"max_tokens": -1, "seed": -1}, {"n_predict": -1}, {"max_tokens": None}):
            await client.post("/v1/completions", json={"prompt": "Hello", **body})

    room = CONTEXT_TOKENS - len("Hello")
    assert [job.max_tokens for job in engine.jobs] == [room, room, 16]
    assert engine.jobs[0].seed == 41


PARTS = [{"type": "text", "text": text} for text in ("ab", "cd")]


@pytest.mark.parametrize("content", ["ab\ncd", PARTS])
async def test_a_prediction_reaches_an_engine_that_uses_it_and_changes_nothing_else(
    content: object,
) -> None:
    prediction = {"prediction": {"type": "content", "content": content}}
    using, other = ScriptedEngine(features=frozenset({"prediction"})), ScriptedEngine()

    statuses = [(await post(engine, prediction))[0] for engine in (using, other)]

    assert statuses == [200, 200]
    assert using.jobs[0].extras == {"prediction": "ab\ncd"}
    assert other.jobs[0].extras == {}


async def test_the_usage_tells_of_the_predictions_of_all_choices() -> None:
    counted = Statistics(accepted_prediction_tokens=5, rejected_prediction_tokens=2)
    engine = ScriptedEngine(statistics=counted)

    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/completions", json={"prompt": "Hello", "n": 2})

    details = answer.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == 10
    assert details["rejected_prediction_tokens"] == 4


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ("a", "prediction"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content.0.text"),
        ({"type": "file", "content": "a"}, "prediction.type"),
    ],
)
async def test_what_is_no_prediction_gets_an_error_that_names_the_field(
    prediction: object, param: str
) -> None:
    engine = ScriptedEngine(features=frozenset({"prediction"}))

    answered = await post(engine, {"prediction": prediction})

    assert answered == (400, param)
    assert engine.jobs == []


@pytest.mark.parametrize("stopping", [{"stop_token_ids": [ord("!")]}, {"stop": ["!"]}])
async def test_what_ends_the_text_is_part_of_it_only_if_the_request_says_so(
    stopping: dict[str, object],
) -> None:
    texts = []
    for included in ({}, {"include_stop_str_in_output": True}):
        async with client_of(make_app(ScriptedEngine([b"Hi", b"!"], features=ALL))) as client:
            body = CHAT | stopping | included
            answer = await client.post("/v1/chat/completions", json=body)
        texts.append(answer.json()["choices"][0]["message"]["content"])

    assert texts == ["Hi", "Hi!"]


async def test_the_models_own_settings_apply_where_the_request_has_none() -> None:
    defaults = {
        "temperature": 0.7,
        "top_k": 20.0,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.0,
    }
    engine = ScriptedEngine(features=ALL, defaults=defaults)

    await post(engine, {})
    await post(
        engine, {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}
    )
    await post(engine, {"temperature": None, "repetition_penalty": 1.3})

    assert engine.jobs[0].sampling == Sampling(0.7, min_p=0.1, top_k=20, top_p=0.8)
    assert engine.jobs[1].sampling == Sampling()
    assert engine.jobs[2].sampling == engine.jobs[0].sampling
    penalties = [job.extras.get("repetition_penalty") for job in engine.jobs]
    assert penalties == [1.1, None, 1.3]
    assert engine.jobs[0].extras.keys() == {"repetition_penalty", "presence_penalty"}


async def test_the_targets_own_limits_of_an_answer_hold_where_it_has_any() -> None:
    engine = ScriptedEngine(defaults={"max_tokens": 7.0, "most_tokens": 9.0})

    for asked in ({}, {"max_tokens": 8}, {"max_tokens": 20}):
        await post(engine, asked)

    assert [job.max_tokens for job in engine.jobs] == [7, 8, 9]


@pytest.mark.parametrize(
    ("asked", "temperature", "seed"),
    [({"temperature": 1e-6, "seed": -5}, 0.01, 2**64 - 5), ({"temperature": 0}, 0.0, 41)],
)
async def test_a_low_temperature_and_a_negative_seed_are_as_vllm_has_them(
    asked: dict[str, object], temperature: float, seed: int
) -> None:
    engine = ScriptedEngine()

    await post(engine, asked)

    assert (engine.jobs[0].sampling.temperature, engine.jobs[0].seed) == (temperature, seed)


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
            "stop_token_ids": [7],
            "min_tokens": 2,
            "ignore_eos": True,
        },
    )

    assert status == 200
    assert engine.jobs[0].extras == {
        "presence_penalty": 1.0,
        "repetition_penalty": 1.5,
        "logit_bias": {5: -100.0},
        "stop_token_ids": [7],
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
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": "1"}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"repeat_penalty": 2.5}, "repeat_penalty"),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.5}, "repeat_penalty"),
        ({"repeat_penalty": 1.5, "repeat_last_n": 64}, "repeat_last_n"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids.0"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1, 257]}, "stop_token_ids.1"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ],
)
async def test_a_served_parameter_with_a_bad_value_is_a_400(
    change: dict[str, object], param: str
) -> None:
    engine = ScriptedEngine(features=ALL)

    status, named = await post(engine, change)

    assert (status, named) == (400, param)
    assert engine.jobs == []
