"""Errors and models as Anthropic's clients know them."""

from __future__ import annotations

import httpx
import pytest

from picospec.gateway.errors import ApiError, Draining, EngineFault, Overloaded, Unavailable
from tests.gateway.scripted import MODEL, Body, ScriptedEngine, ask, client_of, make_app

VERSION = {"anthropic-version": "2023-06-01"}
HI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
LONG = {"messages": [{"role": "user", "content": "a" * 70}], "max_tokens": 5}
HUGE = {"messages": [{"role": "user", "content": "a" * 5000}], "max_tokens": 5}


def check(answer: httpx.Response, status: int, kind: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"type", "error"}
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == kind


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (Overloaded("full", retry_after_s=3), 529, "overloaded_error", "3"),
        (Draining("soon"), 503, "overloaded_error", "1"),
        (Unavailable("gone"), 503, "api_error", None),
        (EngineFault("oh"), 500, "api_error", None),
    ],
)
async def test_an_engines_error_has_anthropics_status_and_type(
    error: ApiError, status: int, kind: str, retry_after: str | None
) -> None:
    answer = await ask(HI, ScriptedEngine((), error), path="/v1/messages")

    check(answer, status, kind)
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    ("status", "kind", "asked", "more"),
    [
        (400, "invalid_request_error", {"messages": 1}, {}),
        (401, "authentication_error", HI, {"api_keys": ["k"]}),
        (403, "permission_error", HI, {"headers": {"origin": "http://evil"}}),
        (404, "not_found_error", HI, {"path": "/v1/messages/batches"}),
        (404, "not_found_error", {**HI, "model": "claude"}, {}),
        (413, "request_too_large", HUGE, {"body_limit_bytes": 1024}),
        (415, "invalid_request_error", HI, {"headers": {"content-type": "text/plain"}}),
    ],
)
async def test_what_stops_a_request_has_a_type_of_its_own(
    status: int, kind: str, asked: Body, more: Body
) -> None:
    check(await ask(asked, **{"path": "/v1/messages", **more}), status, kind)


async def test_a_key_at_its_limit_and_another_method_have_one_too() -> None:
    app = make_app(ScriptedEngine(), key_limits={"requests_a_minute": 1}, api_keys=["k"])
    async with client_of(app, {"x-api-key": "k"}) as client:
        first, second = [await client.post("/v1/messages", json=HI) for _ in range(2)]
    async with client_of(make_app(ScriptedEngine())) as client:
        got = await client.get("/v1/messages")

    assert first.status_code == 200
    check(second, 429, "rate_limit_error")
    check(got, 405, "invalid_request_error")


@pytest.mark.parametrize(("asked", "tokens"), [(LONG, 73), (HUGE, 1250)])
async def test_a_prompt_that_is_too_long_says_how_long_it_is(asked: Body, tokens: int) -> None:
    answer = await ask(asked, path="/v1/messages")

    check(answer, 400, "invalid_request_error")
    message = f"prompt is too long: {tokens} tokens > 64 maximum"
    assert answer.json()["error"]["message"] == message


async def test_tokens_are_counted_without_a_limit_and_are_those_of_the_answer() -> None:
    counted = await ask(
        {"messages": HI["messages"], "system": "Be kind.", "metadata": {}},
        path="/v1/messages/count_tokens",
    )
    answer = await ask({**HI, "system": "Be kind."}, path="/v1/messages")

    assert counted.json() == {"input_tokens": answer.json()["usage"]["input_tokens"]}
    assert counted.headers["x-picospec-ignored"] == "metadata"


async def test_models_have_anthropics_shape_for_its_clients_and_only_for_them() -> None:
    async with client_of(make_app(ScriptedEngine(), model_aliases=["haiku"])) as client:
        page = (await client.get("/v1/models?limit=1000", headers=VERSION)).json()
        model = (await client.get("/v1/models/haiku", headers=VERSION)).json()
        unknown = await client.get("/v1/models/opus", headers=VERSION)
        openais = (await client.get("/v1/models")).json()

    assert [each["id"] for each in page["data"]] == [MODEL, "haiku"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (MODEL, "haiku", False)
    assert page["data"][1] == model
    assert (model["type"], model["display_name"], model["max_tokens"]) == ("model", "haiku", 64)
    check(unknown, 404, "not_found_error")
    assert openais["object"] == "list"
