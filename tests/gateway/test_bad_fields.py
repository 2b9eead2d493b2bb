"""Each bad input gets the defined error, in OpenAI's shape; the engine never gets it.

The bounds of single numbers are in test_parameters; here are fields that depend on one another,
on the engine, or on what a request may cost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from picospec.gateway import grammars
from picospec.gateway.doors.request import SERVABLE
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    END,
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    refusal,
)

USER = {"role": "user", "content": "Hello"}
CHAT = {"model": MODEL, "messages": [USER]}
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
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(features=FEATURES)
    yield engine
    assert engine.jobs == []


@pytest.mark.parametrize(
    ("change", "param", "code"), [*((*bad, "invalid_value") for bad in BAD_CHATS), *OTHER_CODES]
)
async def test_a_bad_chat_request_is_a_400_that_names_the_field(
    engine: ScriptedEngine, change: Body, param: str, code: str
) -> None:
    answer = await ask(CHAT | change, engine)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize(("change", "param", "code"), BAD_TEXTS)
async def test_a_bad_completion_request_is_a_400_that_names_the_field(
    engine: ScriptedEngine, change: Body, param: str, code: str
) -> None:
    answer = await ask({"prompt": "Hello"} | change, engine, path="/v1/completions")

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(("body", "param"), BAD_TOKENS)
async def test_bad_tokens_are_a_400_that_names_the_field(
    engine: ScriptedEngine, body: Body, param: str
) -> None:
    path = "/detokenize" if "tokens" in body else "/tokenize"
    tokenizer = ByteTokenizer(takes_tools=False)

    assert await refusal(body, engine, path=path, tokenizer=tokenizer) == (400, param)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_an_unknown_model_is_a_404(engine: ScriptedEngine, path: str) -> None:
    answer = await ask(CHAT | {"model": "g"}, engine, path=path)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404, "model")
    assert error["code"] == "model_not_found"
