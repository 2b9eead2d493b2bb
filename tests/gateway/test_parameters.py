"""Parameters beyond the schemas: harmless ones pass, served ones are checked and passed on."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from picospec.gateway import grammars
from picospec.gateway.doors.request import SERVABLE
from picospec.gateway.errors import InvalidRequest
from picospec.gateway.ports import Sampling, Statistics
from picospec.gateway.schema import NEUTRAL
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    job_of,
    make_app,
    refusal,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
ALL = frozenset({*SERVABLE, grammars.NAME})
ROOM = CONTEXT_TOKENS - len("u:Hello\n")
BOUNDS = {
    "temperature": (-0.1, 0, 2, 2.1),
    "top_p": (0, 1e-9, 1, 1.1),
    "min_p": (-0.1, 0, 1, 1.1),
    "top_k": (-2, -1, 2**31 - 1, 2**31),
    "seed": (-(2**63) - 1, -(2**63), 2**63 - 1, 2**63),
    "n": (0, 1, 8, 9),
    "presence_penalty": (-2.1, -2, 2, 2.1),
    "frequency_penalty": (-2.1, -2, 2, 2.1),
    "repetition_penalty": (0, 0.01, 2, 2.1),
    "max_tokens": (-2, -1, ROOM, None),
    "min_tokens": (-1, 0, 8, None),
}
"""A value below the least, the least, the most, and a value above that."""

EXTREMES = [
    {"stop": [*"abcdefghijklmno", "p" * 512]},
    {"messages": [{"role": "user", "content": "a" * (CONTEXT_TOKENS - len("u:\n") - 1)}]},
    {"logprobs": True, "top_logprobs": 20},
    {"logit_bias": {"0": -100, "256": 100}},
    {"min_tokens": 8, "max_tokens": 8},
    {"stop_token_ids": [0, 256] * 32},
    {"logit_bias": {str(token): 1 for token in range(257)}},
]


@pytest.mark.parametrize("name", BOUNDS)
async def test_a_number_is_accepted_from_its_least_to_its_most_and_no_further(
    name: str,
) -> None:
    below, least, most, above = BOUNDS[name]
    for value, status in ((below, 400), (least, 200), (most, 200), (above, 400)):
        if value is not None:
            answer = await ask(CHAT | {name: value}, ScriptedEngine(features=ALL))
            assert answer.status_code == status, value
            assert status == 200 or answer.json()["error"]["param"] == name


@pytest.mark.parametrize("change", EXTREMES)
async def test_the_largest_lists_and_texts_are_accepted(change: Body) -> None:
    assert (await ask(CHAT | change, ScriptedEngine(features=ALL))).status_code == 200


async def test_the_settings_of_a_request_reach_the_engine() -> None:
    drawn = await job_of(CHAT | {"temperature": 0.5, "min_p": 0.1, "top_k": 3, "top_p": 0.9})
    other = await job_of(CHAT | {"top_k": -1, "max_completion_tokens": 5, "logprobs": True})

    assert drawn.sampling == Sampling(0.5, min_p=0.1, top_k=3, top_p=0.9)
    assert other.sampling == Sampling(top_k=0)
    assert (other.max_tokens, other.top_logprobs) == (5, 0)


async def test_the_other_names_of_llama_server_mean_the_same() -> None:
    engine = ScriptedEngine(features=ALL)

    await ask(
        CHAT | {"repeat_penalty": 1.5, "n_predict": 3, "n_cmpl": 2, "repeat_last_n": -1}, engine
    )

    assert engine.jobs[0].extras == {"repetition_penalty": 1.5}
    assert [job.max_tokens for job in engine.jobs] == [3, 3]


LIMITED = {"max_tokens": 7.0, "most_tokens": 9.0}


@pytest.mark.parametrize(
    ("defaults", "body", "max_tokens"),
    [
        ({}, CHAT | {"max_tokens": ROOM + 1}, ROOM),
        ({}, CHAT | {"max_tokens": 32_000}, ROOM),
        ({}, CHAT | {"max_tokens": -1}, ROOM),
        ({}, CHAT | {"n_predict": -1}, ROOM),
        ({}, {"prompt": "Hello", "max_tokens": None}, 16),
        (LIMITED, CHAT, 7),
        (LIMITED, CHAT | {"max_tokens": 8}, 8),
        (LIMITED, CHAT | {"max_tokens": 20}, 9),
    ],
)
async def test_an_answer_has_as_many_tokens_as_are_asked_for_and_the_target_has_room_for(
    defaults: dict[str, float], body: Body, max_tokens: int
) -> None:
    job = await job_of(body, ScriptedEngine(defaults=defaults))

    assert job.max_tokens == max_tokens


PARTS = [{"type": "text", "text": text} for text in ("ab", "cd")]


@pytest.mark.parametrize("content", ["ab\ncd", PARTS])
async def test_a_prediction_reaches_an_engine_that_uses_it_and_changes_nothing_else(
    content: object,
) -> None:
    prediction = {"prediction": {"type": "content", "content": content}}
    using, other = ScriptedEngine(features=frozenset({"prediction"})), ScriptedEngine()

    answers = [await ask(CHAT | prediction, engine) for engine in (using, other)]

    ignored = [answer.headers.get("x-picospec-ignored") for answer in answers]
    assert ignored == [None, "prediction"]
    assert using.jobs[0].extras == {"prediction": "ab\ncd"}
    assert other.jobs[0].extras == {}


async def test_the_usage_tells_of_the_predictions_of_all_choices() -> None:
    counted = Statistics(accepted_prediction_tokens=5, rejected_prediction_tokens=2)
    engine = ScriptedEngine(statistics=counted)

    answer = await ask({"prompt": "Hello", "n": 2}, engine)

    details = answer.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == 10
    assert details["rejected_prediction_tokens"] == 4


@pytest.mark.parametrize("stopping", [{"stop_token_ids": [ord("!")]}, {"stop": ["!"]}])
async def test_what_ends_the_text_is_part_of_it_only_if_the_request_says_so(
    stopping: Body,
) -> None:
    texts = []
    for included in ({}, {"include_stop_str_in_output": True}):
        engine = ScriptedEngine([b"Hi", b"!"], features=ALL)
        answer = await ask(CHAT | stopping | included, engine)
        texts.append(answer.json()["choices"][0]["message"]["content"])

    assert texts == ["Hi", "Hi!"]


async def test_the_models_own_settings_apply_where_the_request_has_none() -> None:
    defaults = {
        "temperature": 0.7, "top_k": 20.0, "top_p": 0.8, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.0,
    }  # fmt: skip
    engine = ScriptedEngine(features=ALL, defaults=defaults)

    own = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}

    usual = await job_of(CHAT, engine)
    owns = await job_of(CHAT | own, engine)
    mixed = await job_of(CHAT | {"temperature": None, "repetition_penalty": 1.3}, engine)

    assert usual.sampling == mixed.sampling == Sampling(0.7, min_p=0.1, top_k=20, top_p=0.8)
    assert owns.sampling == Sampling()
    penalties = [job.extras.get("repetition_penalty") for job in (usual, owns, mixed)]
    assert penalties == [1.1, None, 1.3]
    assert usual.extras.keys() == {"repetition_penalty", "presence_penalty"}


@pytest.mark.parametrize(
    ("asked", "temperature", "seed"),
    [
        ({"temperature": 1e-6, "seed": -5}, 0.01, 2**64 - 5),
        ({"temperature": 0}, 0.0, 41),
        ({"temperature": 0, "seed": -1}, 0.0, 41),
    ],
)
async def test_a_low_temperature_and_a_negative_seed_are_as_vllm_has_them(
    asked: Body, temperature: float, seed: int
) -> None:
    job = await job_of(CHAT | asked)

    assert (job.sampling.temperature, job.seed) == (temperature, seed)


async def test_a_false_is_not_the_number_that_changes_nothing() -> None:
    assert await refusal(CHAT | {"presence_penalty": False}) == (400, "presence_penalty")


async def test_what_the_engine_serves_reaches_it_as_the_client_sent_it() -> None:
    same = {
        "presence_penalty": 1, "repetition_penalty": 1.5, "stop_token_ids": [7],
        "min_tokens": 2, "ignore_eos": True,
    }  # fmt: skip

    job = await job_of(
        {**CHAT, **same, "logit_bias": {"5": -100}}, ScriptedEngine(features=ALL)
    )

    assert job.extras == {**same, "logit_bias": {5: -100.0}}


# What cannot change the answer is accepted and named; what would change it is not ignored.

TOLERANCE_CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
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

    answer = await ask(TOLERANCE_CHAT | {name: value}, engine)

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

    answer = await ask(TOLERANCE_CHAT | {name: value}, engine)

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
        "stream_options": {"steady": True},
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
        " stream_options.steady, messages.cache_control"
    )
    assert answer.status_code == 200
    assert answer.headers["x-picospec-ignored"] == ignored
    assert [", ".join(entry["ignored"]) for entry in logs] == [ignored]
    assert "x-picospec-ignored" not in (await ask(TOLERANCE_CHAT | {"stream": stream})).headers


async def test_names_in_the_header_are_few_short_and_clean() -> None:
    names = ["a\r\nset-cookie: b", "é", "c" * 65, "", *(f"field{i}" for i in range(100))]

    with capture_logs() as logs:
        answer = await ask(TOLERANCE_CHAT | dict.fromkeys(names, 1))

    shown = answer.headers["x-picospec-ignored"].split(", ")
    assert shown == ["?", *(f"field{i}" for i in range(31))]
    assert "set-cookie" not in answer.headers
    assert "cookie" not in repr(logs)


async def test_the_model_may_be_left_out_or_have_another_name() -> None:
    aliases = {"model_aliases": ["gpt-4o", MODEL]}
    answers = [
        await ask(TOLERANCE_CHAT | body, **aliases)
        for body in ({}, {"model": "gpt-4o"}, {"model": MODEL})
    ]
    unknown = await ask(TOLERANCE_CHAT | {"model": "gpt-4"}, **aliases)
    answers.append(await ask(TOLERANCE_CHAT | {"model": "gpt-4"}, accept_any_model=True))

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
        answer = await client.post(
            "/v1/chat/completions", json=TOLERANCE_CHAT | {"model": "styled"}
        )

    assert [model["id"] for model in listed] == [MODEL, "styled"]
    assert answer.json()["model"] == "styled"
    assert engine.jobs[0].identity == "of-styled"


# All ways to ask for structured output reach the engine as one parameter, in one form.

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "s", "strict": True, "schema": SCHEMA}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

SAME = [
    ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json": SCHEMA}),
    ({"structured_outputs": {"json": {}, "json_object": False}}, {"json": {}}),
    ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
    ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ({"structured_outputs": {"grammar": "root ::= a"}}, {"grammar": "root ::= a"}),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "auto"}, {"json": SCHEMA}),
    ({"guided_json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
    ({"guided_json_object": True}, {"json_object": True}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
    ({"guided_grammar": "root ::= a"}, {"grammar": "root ::= a"}),
    ({"json_schema": SCHEMA}, {"json": SCHEMA}),
    ({"grammar": "root ::= a"}, {"grammar": "root ::= a"}),
    ({"grammar": "", "guided_regex": "a", "response_format": {"type": "text"}}, {"regex": "a"}),
]


@pytest.mark.parametrize(("change", "expected"), SAME)
async def test_each_way_reaches_the_engine_in_one_form(change: Body, expected: Body) -> None:
    job = await job_of(CHAT | change, ScriptedEngine(features=frozenset({grammars.NAME})))

    assert job.extras == {grammars.NAME: expected}


AT = [
    ({"guided_json": SCHEMA}, "guided_json.properties.a"),
    ({"json_schema": SCHEMA}, "json_schema.properties.a"),
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json.properties.a"),
    (
        {"response_format": {"type": "json_schema", "json_schema": NAMED}, "grammar": ""},
        "response_format.json_schema.schema.properties.a",
    ),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        "response_format.schema.properties.a",
    ),
    ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
]


@pytest.mark.parametrize(("change", "path"), AT)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_cannot_compile_is_named_as_the_client_does(
    change: Body, path: str, stream: bool
) -> None:
    kind = "grammar" if "tools" in change else "json.properties.a"
    param = f"structured_outputs.{kind}"
    error = InvalidRequest(f"{param}: an unknown type", param=param)
    serving = ScriptedEngine((), then=error, features=frozenset({grammars.NAME}))

    answer = await ask(CHAT | change | {"stream": stream}, serving)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == path
    assert answer.json()["error"]["message"] == f"{path}: an unknown type"
