"""Each bad input gets the defined error, in OpenAI's shape; the engine never gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import CONTEXT_TOKENS, MODEL, ScriptedEngine, client_of, make_app


def asks(content: object, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content, **more}]}


CHAT = {"model": MODEL, **asks("Hello")}
TEXT = {"model": MODEL, "prompt": "Hello"}

BAD_CHATS = [
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 2**31}, "top_k", "invalid_value"),
    ({"min_p": -0.1}, "min_p", "invalid_value"),
    ({"min_p": 1.1}, "min_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"n": "2"}, "n", "invalid_value"),
    ({"stream": 1}, "stream", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": -(2**63) - 1}, "seed", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": CONTEXT_TOKENS - 7}, "messages", "context_length_exceeded"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": ""}, "stop.0", "invalid_value"),
    ({"stop": "a" * 513}, "stop.0", "invalid_value"),
    ({"stop": 7}, "stop", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_value"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output", "invalid_value"),
    ({"n_predict": 0}, "n_predict", "invalid_value"),
    ({"max_tokens": 4, "n_predict": 4}, "n_predict", "invalid_value"),
    ({"n": 1, "n_cmpl": 1}, "n_cmpl", "invalid_value"),
    ({"max_tokens": -2}, "max_tokens", "invalid_value"),
    ({"prompt": "Hello"}, "prompt", "unsupported_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "invalid_value"),
    (asks([{"type": "image_url"}]), "messages.0.content.0.type", "invalid_value"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "invalid_value"),
    (asks("a" * (CONTEXT_TOKENS - 3)), "messages", "context_length_exceeded"),
    ({"model": ""}, "model", "invalid_value"),
]

BAD_TEXTS = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": [True]}, "prompt", "invalid_value"),
    ({"prompt": [5, "a"]}, "prompt", "invalid_value"),
    ({"prompt": [5, 257]}, "prompt", "invalid_value"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 17}, "prompt", "invalid_value"),
    ({"prompt": "a" * CONTEXT_TOKENS}, "prompt", "context_length_exceeded"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"prompt": ["a"] * 3, "n": 6}, "prompt", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"messages": []}, "messages", "unsupported_parameter"),
]


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    assert engine.jobs == []


async def post(
    engine: ScriptedEngine, path: str, body: object, **settings: object
) -> tuple[int, dict[str, object]]:
    async with client_of(make_app(engine, **settings)) as client:
        answer = await client.post(path, json=body)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(("change", "param", "code"), BAD_CHATS)
async def test_a_bad_chat_request_is_a_400_that_names_the_field(
    engine: ScriptedEngine, change: dict[str, object], param: str, code: str
) -> None:
    status, error = await post(engine, "/v1/chat/completions", CHAT | change)

    assert (status, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("change", "param", "code"), BAD_TEXTS)
async def test_a_bad_completion_request_is_a_400_that_names_the_field(
    engine: ScriptedEngine, change: dict[str, object], param: str, code: str
) -> None:
    status, error = await post(engine, "/v1/completions", TEXT | change)

    assert (status, error["param"], error["code"]) == (400, param, code)


async def test_an_unknown_model_is_a_404(engine: ScriptedEngine) -> None:
    status, error = await post(engine, "/v1/chat/completions", CHAT | {"model": "g"})

    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")


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
@pytest.mark.parametrize(
    ("settings", "limit"), [({"body_limit_bytes": 1024}, 1024), ({}, 2**20)]
)
async def test_a_body_over_the_limit_is_a_413_announced_or_not(
    engine: ScriptedEngine, chunked: bool, settings: dict[str, int], limit: int
) -> None:
    async def chunks(*sizes: int) -> AsyncIterator[bytes]:
        for size in sizes:
            yield b" " * size

    small, large = (limit // 2, limit // 2), (limit // 2, limit // 2 + 1)
    async with client_of(make_app(engine, **settings)) as client:
        answers = [
            await client.post(
                "/v1/chat/completions", content=chunks(*sizes) if chunked else b" " * sum(sizes)
            )
            for sizes in (small, large)
        ]

    assert [answer.status_code for answer in answers] == [400, 413]
    assert answers[1].json()["error"]["code"] == "request_too_large"


async def test_a_body_announced_over_the_limit_is_not_asked_for(engine: ScriptedEngine) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": "1025", "expect": "100-continue"}
    async with client_of(make_app(engine, body_limit_bytes=1024)) as client:
        answer = await client.post("/", content=unread(), headers=headers)

    assert answer.status_code == 413


async def test_the_message_says_what_would_fit(engine: ScriptedEngine) -> None:
    _, default = await post(engine, "/v1/completions", TEXT | {"prompt": [1] * CONTEXT_TOKENS})
    _, wanted = await post(engine, "/v1/chat/completions", CHAT | {"max_tokens": 57})
    _, token = await post(engine, "/v1/completions", TEXT | {"prompt": [257]})

    assert default["message"].endswith("takes 64 and the completion asks for 1")
    assert wanted["message"].endswith("takes 8 and the completion asks for 57")
    assert token["message"] == "token ids must be from 0 to 256"


async def test_the_limit_of_choices_is_the_services() -> None:
    async with client_of(make_app(ScriptedEngine(), max_choices=3)) as client:
        answers = [
            await client.post("/v1/chat/completions", json=CHAT | {"n": n}) for n in (3, 4)
        ]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json()["error"]["param"] == "n"


@pytest.mark.parametrize(
    "settings",
    [
        {"body_limit_bytes": 1023},
        {"max_choices": 0},
        {"max_choices": 129},
        {"keep_alive_s": 0},
        {"model_aliases": [""]},
        {"cors_origins": [""]},
    ],
)
def test_settings_beyond_their_range_are_rejected(settings: dict[str, object]) -> None:
    make_app(ScriptedEngine(), body_limit_bytes=1024, max_choices=1)
    make_app(ScriptedEngine(), max_choices=128)

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
        answers = [
            await client.get("/ready"),
            await client.get("/v1/models"),
            await client.post("/v1/chat/completions", json=CHAT),
        ]
        health = await client.get("/health")

    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert health.status_code == 200
    assert answers[0].json()["error"]["code"] == "verifier_unavailable"
