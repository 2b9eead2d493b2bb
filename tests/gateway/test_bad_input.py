"""What is no request, or no setting, gets the defined error; the engine never gets it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from picospec.gateway import grammars
from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.messages_schema import ChatMessage
from picospec.gateway.doors.ollama import OllamaChat, OllamaGenerate
from picospec.gateway.doors.request import SERVABLE
from picospec.gateway.errors import Unavailable
from picospec.gateway.routes import TokenizeRequest
from picospec.gateway.schema import NEUTRAL
from tests.gateway.messages import claude_code
from tests.gateway.native.test_llama_server import LLAMA_VIM
from tests.gateway.native.test_ollama import HISTORY, OPTIONS, SCHEMA, TOOL
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    END,
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    client_of,
    door_of,
    make_app,
    refusal,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    assert engine.jobs == []


NAN = b'{"model": "bytes-1", "messages": [{"role": "user", "content": ""}], "top_p": NaN}'


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "\xff"}', b"[" * 500, b"[1]", NAN])
async def test_a_body_that_is_no_json_object_is_a_400(
    engine: ScriptedEngine, body: bytes
) -> None:
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", content=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    syntax = error["message"] == "the body is not valid JSON"
    assert syntax is (error["code"] == "invalid_json") is (body not in (b"[1]", NAN))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("own", "limit"), [(1024, 1024), (None, 2**20)])
async def test_a_body_over_the_limit_is_a_413_announced_or_not(
    engine: ScriptedEngine, chunked: bool, own: int | None, limit: int
) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b" " * 512
        yield b" " * (size - 512)

    answers = []
    async with client_of(make_app(engine, body_limit_bytes=own)) as client:
        for size in (limit, limit + 1):
            content = chunks(size) if chunked else b" " * size
            answers.append(await client.post("/v1/chat/completions", content=content))

    assert [answer.status_code for answer in answers] == [400, 413]
    assert answers[1].json()["error"]["code"] == "request_too_large"


async def test_the_message_says_what_would_fit(engine: ScriptedEngine) -> None:
    long = await ask({"prompt": [1] * CONTEXT_TOKENS}, engine)
    token = await ask({"prompt": [257]}, engine)

    assert long.json()["error"]["message"] == "the context has 64 tokens, the prompt takes 64"
    assert token.json()["error"]["message"] == "token ids must be from 0 to 256"


async def test_the_limit_of_choices_is_the_services() -> None:
    answers = [await ask(CHAT | {"n": n}, max_choices=3) for n in (3, 4)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json()["error"]["param"] == "n"


@pytest.mark.parametrize(
    "settings", [{"body_limit_bytes": 1023}, {"max_choices": 129}, {"keep_alive_s": 0}]
)
def test_settings_beyond_their_range_are_rejected(settings: Body) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_app(ScriptedEngine(), **settings)


async def test_unknown_paths_and_methods_are_errors_in_openais_shape(
    engine: ScriptedEngine,
) -> None:
    async with client_of(make_app(engine)) as client:
        nowhere = await client.get("/v1/nowhere")
        wrong = await client.get("/v1/chat/completions")

    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_without_a_verifier_everything_that_needs_it_is_a_503_and_health_is_not() -> None:
    engine = ScriptedEngine(down=Unavailable("no verifier at 127.0.0.1:9000"))
    async with client_of(make_app(engine)) as client:
        answers = [await client.get(path) for path in ("/ready", "/v1/models")]
        answers.append(await client.post("/v1/chat/completions", json=CHAT))
        health = await client.get("/health")

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert health.status_code == 200
    assert answers[0].json()["error"]["code"] == "verifier_unavailable"


# Each bad input gets the defined error, in OpenAI's shape; the engine never gets it.
#
# The bounds of single numbers are in test_parameters; here are fields that depend on one
# another, on the engine, or on what a request may cost.

USER = {"role": "user", "content": "Hello"}
BAD_FIELDS_CHAT = {"model": MODEL, "messages": [USER]}
FEATURES = frozenset({*SERVABLE, grammars.NAME, "prediction"})
LARGE = {"description": "a" * grammars.MAX_BYTES}
F = {"name": "f", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": F}]}
MISSING, UNSUPPORTED = "missing_required_parameter", "unsupported_parameter"
TOO_LONG = "context_length_exceeded"
CONTINUED = {"continue_final_message": True, "add_generation_prompt": True}
TAG, UNNAMED = {"structural_tag": "{}"}, {"json_schema": {"schema": {}}}
NAMED_G = {"type": "function", "function": {"name": "g"}}


def said(message: Body) -> Body:
    return {"messages": [USER, message]}


def calling(role: str, **call: object) -> Body:
    function = {"name": "f", "arguments": call.pop("arguments", "{}")}
    calls = [{"type": "function", "function": function, **call}]
    return said({"role": role, "content": "", "tool_calls": calls})


def tool(**function: object) -> Body:
    return {"tools": [{"type": "function", "function": {**F, **function}}]}


SAID_BY_THE_MODEL = said({"role": "assistant", "content": "a"})
BAD_CHATS = [
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
    ({"max_tokens": 4, "n_predict": 4}, "n_predict"),
    ({"n": 1, "n_cmpl": 1}, "n_cmpl"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop.0"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    ({"model": ""}, "model"),
    (said({"role": "robot", "content": ""}), "messages.1.role"),
    (said({"role": "user", "content": [{"type": "image_url"}]}), "messages.1.content.0.type"),
    (calling("user"), "messages.1.tool_calls"),
    (calling("assistant", arguments=7), "messages.1.tool_calls.0.function.arguments"),
    (calling("assistant", type="other"), "messages.1.tool_calls.0.type"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"reasoning_format": "deepseek-legacy"}, "reasoning_format"),
    ({"logit_bias": {"257": 1}}, "logit_bias.257"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five.[key]"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"repeat_penalty": 1.5, "repetition_penalty": 1.5}, "repeat_penalty"),
    ({"stop_token_ids": [1, 257]}, "stop_token_ids.1"),
    ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"prediction": {"type": "file", "content": "a"}}, "prediction.type"),
    ({"prediction": {"type": "content", "content": 7}}, "prediction.content"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "text", **UNNAMED}}, "response_format.json_schema"),
    ({"guided_json": LARGE}, "guided_json"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[" * 9000}}, "structured_outputs.json"),
    ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
    ({"guided_regex": "a" * grammars.MAX_BYTES}, "guided_regex"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "grammar": "a"}, "grammar"),
    ({"grammar": []}, "grammar"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": TOOLS["tools"] * 129}, "tools"),
    (tool(name="a b"), "tools.0.function.name"),
    (tool(parameters=LARGE), "tools.0.function.parameters"),
    ({**TOOLS, "tool_choice": "any"}, "tool_choice.type"),
    ({**TOOLS, "tool_choice": NAMED_G}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
]
OTHER_CODES = [
    (said({**USER, "content": "a" * 64}), "messages", TOO_LONG),
    ({"messages": None}, "messages", MISSING),
    (said({"role": "user"}), "messages.1.content", MISSING),
    ({"prompt": "Hello"}, "prompt", UNSUPPORTED),
    (calling("assistant", type="custom"), "messages.1.tool_calls.0.custom", MISSING),
    ({**SAID_BY_THE_MODEL, **CONTINUED}, "add_generation_prompt", UNSUPPORTED),
    (said({"role": "assistant", "audio": {"id": "a"}}), "messages.1.audio", UNSUPPORTED),
    ({"repeat_penalty": 1.5, "repeat_last_n": 64}, "repeat_last_n", UNSUPPORTED),
    ({"structured_outputs": TAG}, "structured_outputs.structural_tag", UNSUPPORTED),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", UNSUPPORTED),
    ({**TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING),
]
BAD_TEXTS = [
    ({"prompt": None}, "prompt", MISSING),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": [True]}, "prompt", "invalid_value"),
    ({"prompt": [5, "a"]}, "prompt", "invalid_value"),
    ({"prompt": [5, 257]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 3, "n": 6}, "prompt", "invalid_value"),
    ({"prompt": "a" * CONTEXT_TOKENS}, "prompt", TOO_LONG),
    ({"best_of": 2}, "best_of", UNSUPPORTED),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"messages": []}, "messages", UNSUPPORTED),
    ({"suffix": "z", "prompt": ["a", [5]]}, "suffix", "invalid_value"),
    ({"echo": True, "logprobs": 0}, "echo", "invalid_value"),
]
BAD_TOKENS = [
    ({}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"content": "a", "prompt": "a"}, "prompt"),
    ({"content": "a", "messages": [USER]}, "prompt"),
    ({"content": "a", "with_pieces": 1}, "with_pieces"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [USER], "add_generation_prompt": False}, "add_generation_prompt"),
    ({"messages": [USER], **TOOLS}, "tools"),
    ({"tokens": [1, -1]}, "tokens.1"),
    ({"tokens": [END + 1]}, "tokens.0"),
]


@pytest.fixture
async def bad_fields_engine() -> AsyncIterator[ScriptedEngine]:
    bad_fields_engine = ScriptedEngine(features=FEATURES)
    yield bad_fields_engine
    assert bad_fields_engine.jobs == []


@pytest.mark.parametrize(
    ("change", "param", "code"), [*((*bad, "invalid_value") for bad in BAD_CHATS), *OTHER_CODES]
)
async def test_a_bad_chat_request_is_a_400_that_names_the_field(
    bad_fields_engine: ScriptedEngine, change: Body, param: str, code: str
) -> None:
    answer = await ask(BAD_FIELDS_CHAT | change, bad_fields_engine)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize(("change", "param", "code"), BAD_TEXTS)
async def test_a_bad_completion_request_is_a_400_that_names_the_field(
    bad_fields_engine: ScriptedEngine, change: Body, param: str, code: str
) -> None:
    answer = await ask({"prompt": "Hello"} | change, bad_fields_engine, path="/v1/completions")

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(("body", "param"), BAD_TOKENS)
async def test_bad_tokens_are_a_400_that_names_the_field(
    bad_fields_engine: ScriptedEngine, body: Body, param: str
) -> None:
    path = "/detokenize" if "tokens" in body else "/tokenize"
    tokenizer = ByteTokenizer(takes_tools=False)

    assert await refusal(body, bad_fields_engine, path=path, tokenizer=tokenizer) == (
        400,
        param,
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_an_unknown_model_is_a_404(bad_fields_engine: ScriptedEngine, path: str) -> None:
    answer = await ask(BAD_FIELDS_CHAT | {"model": "g"}, bad_fields_engine, path=path)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404, "model")
    assert error["code"] == "model_not_found"


# Whatever a client sends, it is served, or gets an error that names a field; never a 500.

FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
MORE = sorted({
    *FIELDS, *NEUTRAL, *OllamaChat.model_fields, *OllamaGenerate.model_fields,
})  # fmt: skip
NATIVE: list[tuple[str, Body]] = [
    ("/infill", LLAMA_VIM),
    ("/completion", {"prompt": ["a", [1, 2]], "n_predict": 3, "stream": True, "stop": ["x"]}),
    ("/api/chat", {"messages": HISTORY, "tools": [TOOL], "format": SCHEMA, "options": OPTIONS}),
    ("/api/generate", {"prompt": "a", "system": "b", "options": OPTIONS, "logprobs": True}),
    ("/api/generate", {"prompt": "a", "suffix": "b", "raw": True, "options": OPTIONS}),
    ("/api/show", {"model": "bytes-1"}),
]
NEEDED = {"messages", "prompt", "tokens", "input", "model", "input_prefix"}
"""Fields that an error may name though the body has them not."""

ODD = [None, True, -1, 0, 1, 2**70, 0.5, 1e308, "", "a", "{}", "\x00", [], [1], {}, {"a": 1}]
ROLES = ["system", "developer", "user", "assistant", "tool", "function", "robot"]
BODIES = [json.loads(path.read_text()) for path in (Path(__file__).parent / "data").iterdir()]

ANTHROPICS: Body = {
    "tool_choice": {"type": "tool", "name": "Bash", "disable_parallel_tool_use": True},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stop_sequences": ["a"],
}
values = st.sampled_from(ODD) | st.recursive(
    st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "json", "schema", "content", "text"]),
            inner,
        )
    ),
    max_leaves=5,
)
requests = (
    st.sampled_from([(door_of(body), body) for body in BODIES])
    | st.just(("/v1/messages", claude_code.request(**ANTHROPICS)))
    | st.sampled_from(NATIVE)
)
message_fields = st.sampled_from(sorted(ChatMessage.model_fields))
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES)}).flatmap(
        lambda role: st.dictionaries(message_fields, values, max_size=3).map(lambda m: m | role)
    ),
    max_size=3,
)


def replaced(body: object, data: st.DataObject) -> Any:  # noqa: ANN401 - JSON
    """Return a body in which some values somewhere are others."""
    if data.draw(st.integers(0, 19)) == 0:
        return data.draw(values)
    if isinstance(body, dict):
        return {name: replaced(value, data) for name, value in body.items()}
    if isinstance(body, list):
        return [replaced(item, data) for item in body]
    return body


def check(path: str, body: Any) -> None:  # noqa: ANN401 - JSON
    engine = ScriptedEngine(features=frozenset(FIELDS), context_tokens=4096)
    found = asyncio.run(ask(body, engine, path=path))

    assert found.status_code in (200, 400, 404), (body, found.text)
    if found.status_code == 400 and isinstance(body, dict):
        error = found.json()["error"]
        named = error if isinstance(error, str) else error.get("details", error)["param"]
        assert named, error
        assert re.split(r"[ :.]", named)[0] in body.keys() | NEEDED, error


@settings(max_examples=60)
@given(messages, st.dictionaries(st.sampled_from([*FIELDS, *NEUTRAL]), values, max_size=3))
def test_any_chat_is_served_or_named(sent: object, more: Body) -> None:
    check("/v1/chat/completions", {"messages": sent, **more})


@settings(max_examples=180)
@given(requests, st.dictionaries(st.sampled_from(MORE), values, max_size=2), st.data())
def test_a_request_with_odd_values_is_served_or_named(
    request: tuple[str, Body], more: Body, data: st.DataObject
) -> None:
    path, known = request

    check(path, replaced({**known, **more}, data))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*TokenizeRequest.model_fields, "tools"]), values))
def test_any_text_is_tokenised_or_named(body: Body) -> None:
    check("/tokenize", body)
