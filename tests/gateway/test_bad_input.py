"""What is no request, or no setting, gets the defined error; the engine never gets it. What
cannot change the answer is accepted and named. The bodies of each endpoint are in the
corpus."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from gateway.answer_fields import NEUTRAL
from gateway.endpoints import completions
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.messages_schema import ChatMessage
from gateway.endpoints.ollama import OllamaChat, OllamaGenerate
from gateway.errors import Unavailable
from gateway.tokenize_routes import TokenizeRequest
from speculation.request_names import PROMPT_LOGPROBS
from tests.gateway.cases import CASES
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
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


@pytest.mark.parametrize(
    "settings", [{"body_limit_bytes": 1023}, {"max_choices": 129}, {"keep_alive_s": 0}]
)
def test_settings_beyond_their_range_are_rejected(settings: Body) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_app(ScriptedEngine(), **settings)


async def test_without_a_verifier_everything_that_needs_it_is_a_503_and_health_is_not() -> None:
    engine = ScriptedEngine(down=Unavailable("no verifier at 127.0.0.1:9000"))
    async with client_of(make_app(engine)) as client:
        answers = [await client.get(path) for path in ("/ready", "/v1/models")]
        answers.append(await client.post("/v1/chat/completions", json=CHAT))
        health = await client.get("/health")

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert health.status_code == 200
    assert answers[0].json()["error"]["code"] == "verifier_unavailable"


# What cannot change the answer is accepted and named; what would change it is not ignored.

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


@pytest.mark.parametrize(("name", "value"), NEUTRAL_VALUES)
async def test_a_neutral_value_and_a_null_leave_no_trace(name: str, value: object) -> None:
    engine = ScriptedEngine()

    answer = await ask(CHAT | {name: value}, engine)

    assert answer.status_code == 200
    assert "x-picospec-ignored" not in answer.headers
    (job,) = engine.jobs
    room = CONTEXT_TOKENS - len(job.prompt)
    assert (job.extras, job.seed, job.max_tokens) == ({}, 41, room)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, {"any": "other"}) for name in NEUTRAL if name not in OF_CHAT],
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


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_ignored_is_in_a_header_and_once_in_the_log(stream: bool) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello", "cache_control": {"type": "x"}}] * 2,
        "stream": stream,
        "stream_options": {"steady": True} if stream else None,
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
        f"{' stream_options.steady,' if stream else ''} messages.cache_control"
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


# Whatever a client sends, it is served, or gets an error that names a field; never a 500.

FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})

MORE = sorted({
    *FIELDS, *NEUTRAL, *OllamaChat.model_fields, *OllamaGenerate.model_fields,
})  # fmt: skip
NEEDED = {"messages", "prompt", "tokens", "input", "model", "input_prefix"}
"""Fields that an error may name though the body has them not."""

ODD = [None, True, -1, 0, 1, 2**70, 0.5, 1e308, "", "a", "{}", "\x00", [], [1], {}, {"a": 1}]

ROLES = ["system", "developer", "user", "assistant", "tool", "function", "robot"]

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
requests = st.sampled_from(
    [
        (case.endpoint, case.body)
        for case in CASES
        if case.is_served and len(str(case.body)) < 9000
    ]
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


@pytest.mark.parametrize(
    ("limit", "most", "body", "field"),
    [
        ("MAX_ECHOED", 10, {"prompt": "hello", "echo": True, "n": 2}, None),
        ("MAX_ECHOED", 10, {"prompt": "hello", "echo": True, "n": 3}, "echo"),
        ("MAX_SCORED", 12, {"prompt": ["abc", "def"], "prompt_logprobs": 1}, None),
        ("MAX_SCORED", 12, {"prompt": ["abc", "def"], "prompt_logprobs": 2}, "prompt"),
    ],
)
async def test_all_choices_together_repeat_and_score_a_bounded_text(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, body: Body, field: str | None
) -> None:
    monkeypatch.setattr(completions, limit, most)
    engine = ScriptedEngine(features=frozenset({PROMPT_LOGPROBS}))

    answer = await ask(body, engine)

    assert answer.status_code == (400 if field else 200)
    assert not field or answer.json()["error"]["param"] == field
