"""A request for messages asks for the same as a chat, or gets an error that names its field."""

from __future__ import annotations

import httpx
import pytest

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.messages import MessagesRequest
from picospec.gateway.errors import ApiError, Draining, EngineFault, Overloaded, Unavailable
from tests.gateway.messages import claude_code
from tests.gateway.messages.claude_code import text
from tests.gateway.scripted import (
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
    meaning,
)

HI = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": [text("Yes.")]}
SCHEMA = {"type": "object"}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
CHATS_FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
TOOL = {"name": "f", "input_schema": SCHEMA}
SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "f"}}
LONG = "mcp__" + "a" * 123
LONG_FUNCTION = {"type": "function", "function": {"name": LONG, "parameters": SCHEMA}}
SETTINGS = {
    "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7, "min_p": 0.1,
}  # fmt: skip
THOUGHTS = [
    {"type": "thinking", "thinking": "Well.", "signature": "any"},
    {"type": "redacted_thinking", "data": "AAAA"},
]
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {"b": 1, "a": [2.0]}}
CHATS_TURN = {
    "role": "assistant",
    "content": "I call.",
    "reasoning": "Well.",
    "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": '{"b":1,"a":[2.0]}'}}],
}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [text("a"), text("b")]}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://a"}}
ADAPTIVE, DISABLED, HARD = {"type": "adaptive"}, {"type": "disabled"}, {"effort": "high"}
EMPTY_FORMAT = {"type": "json_schema", "schema": {}}


def turns(*messages: object, **more: object) -> Body:
    return {"messages": list(messages), **more}


def one(**more: object) -> Body:
    return turns(HI, **more)


def user(*blocks: object) -> Body:
    return {"role": "user", "content": [*blocks]}


def model(*blocks: object) -> Body:
    return {"role": "assistant", "content": [*blocks]}


def result(*parts: object) -> Body:
    return {"role": "tool", "tool_call_id": "t", "content": [*parts]}


SAME: list[tuple[Body, Body]] = [
    (one(model="m", **SETTINGS), one(**SETTINGS)),
    (one(stop_sequences=["a", " "]), one(stop=["a", " "])),
    (one(system="Be kind."), turns({"role": "system", "content": "Be kind."}, HI)),
    (one(system=[text("x-anthropic-billing-header: a")]), one()),
    (turns(HI, HI), turns(user(text("Hi"), text("Hi")))),
    (
        turns(user(RESULT, {**RESULT, "is_error": True}, text("c"))),
        turns(
            result(text("a"), text("b")),
            result(text("Error:"), text("a"), text("b")),
            user(text("c")),
        ),
    ),
    (
        turns(HI, model(*THOUGHTS, text("I call."), CALL), user(RESULT)),
        turns(HI, CHATS_TURN, result(text("a"), text("b"))),
    ),
    (one(tools=[SERVER_TOOL, TOOL]), one(tools=[FUNCTION])),
    (one(tools=[{**TOOL, "name": LONG}]), one(tools=[LONG_FUNCTION])),
    (
        one(tools=[TOOL], tool_choice={"type": "any"}),
        one(tools=[FUNCTION], tool_choice="required"),
    ),
    (
        one(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
        one(tools=[FUNCTION], tool_choice="auto", parallel_tool_calls=False),
    ),
    (
        one(tools=[TOOL], tool_choice={"type": "tool", "name": "f"}),
        one(tools=[FUNCTION], tool_choice=NAMED),
    ),
    (
        one(tools=[TOOL], tool_choice={"type": "none"}),
        one(tools=[FUNCTION], tool_choice="none"),
    ),
    (one(output_config={"format": FORMAT}), one(response_format=CHATS_FORMAT)),
    (one(output_format=FORMAT), one(response_format=CHATS_FORMAT)),
    (one(thinking=ADAPTIVE), one()),
    (turns(HI, ANSWER), turns(HI, ANSWER, continue_final_message=True)),
    (one(thinking={"type": "enabled", "budget_tokens": 1024}), one(enable_thinking=True)),
    (one(thinking=ADAPTIVE, output_config=HARD), one(reasoning_effort="high")),
    (one(thinking=DISABLED, output_config=HARD), one(enable_thinking=False)),
]


@pytest.mark.parametrize(("messages", "chat"), SAME)
async def test_it_is_answered_as_the_chat_that_asks_for_the_same(
    messages: Body, chat: Body
) -> None:
    named = {"model": MODEL}
    assert await meaning(messages | named, path="/v1/messages") == await meaning(chat | named)

    ours, theirs = MessagesRequest.model_validate(messages).chat(), ChatRequest(**chat)
    assert (ours.stop, ours.tool_use) == (theirs.stop, theirs.tool_use)


async def test_what_claude_code_sends_is_served_whole() -> None:
    tokenizer, engine = ByteTokenizer(), ScriptedEngine(context_tokens=4096)

    answer = await ask(
        claude_code.request(),
        engine,
        path=claude_code.PATH,
        headers=claude_code.HEADERS,
        tokenizer=tokenizer,
        api_keys=["key"],
    )

    (shown,) = tokenizer.rendered
    system, user, late, assistant, tool = shown["messages"]  # type: ignore[misc]
    assert answer.status_code == 200, answer.text
    texts = [part["text"] for part in system["content"]]
    assert texts == ["You help with code.", "The directory is /tmp."]
    assert (user["role"], len(user["content"])) == ("user", 2)
    assert late == {"role": "system", "content": "The date has changed."}
    assert assistant["reasoning"] == "I look."
    (call,) = assistant["tool_calls"]
    assert (call["id"], call["function"]["arguments"]) == ("toolu_1", {"command": "ls -a"})
    assert tool == {"role": "tool", "content": "a.py", "tool_call_id": "toolu_1"}
    assert [each["function"]["name"] for each in shown["tools"]] == claude_code.NAMES  # type: ignore[attr-defined]
    assert shown["options"] == {"enable_thinking": True, "reasoning_effort": "high"}
    assert engine.jobs[0].max_tokens == 4096 - len(engine.jobs[0].prompt)
    assert answer.headers["x-picospec-ignored"] == (
        "messages.content.cache_control, system.cache_control, metadata, context_management"
    )


async def test_what_cannot_be_told_to_the_model_is_named() -> None:
    asked = one(
        tools=[SERVER_TOOL, TOOL | {"defer_loading": True}], mcp_servers=[], container="c",
        thinking=DISABLED, output_config={"effort": "low"},
        stream=True, stream_options={"include_speculation": True},
    )  # fmt: skip

    answer = await ask(asked, path="/v1/messages")

    assert answer.headers["x-picospec-ignored"] == (
        "tools.web_search_20250305, output_config.effort, tools.defer_loading,"
        " stream_options.include_speculation, mcp_servers, container"
    )


REFUSED: list[tuple[Body, str]] = [
    ({}, "messages"),
    (turns(), "messages"),
    (turns(HI, model(CALL)), "messages"),
    (turns({"role": "robot", "content": "a"}), "messages.0.role"),
    (turns({"role": "user"}), "messages.0.content"),
    (turns(user(IMAGE)), "messages.0.content.0"),
    (turns(user({**IMAGE, "type": "document"})), "messages.0.content.0"),
    (turns(user(CALL)), "messages.0.content"),
    (turns(HI, model(RESULT), HI), "messages.1.content"),
    (
        turns(user({**RESULT, "content": [IMAGE]})),
        "messages.0.content.0.tool_result.content.0.type",
    ),
    (one(system=[IMAGE]), "system.0.type"),
    (one(tools=[{"name": "f"}]), "tools.0.custom.input_schema"),
    (one(tools=[{**TOOL, "name": "a b"}]), "tools.0.custom.name"),
    (one(tools=[{**TOOL, "name": "a" * 129}]), "tools.0.custom.name"),
    (one(tools=[SERVER_TOOL, {**TOOL, "strict": True}]), "tools.1.strict"),
    (one(tool_choice={"type": "any"}), "tool_choice"),
    (one(tools=[TOOL], tool_choice={"type": "tool"}), "tool_choice.name"),
    (one(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}), "tool_choice"),
    (one(stop_sequences=[""]), "stop_sequences.0"),
    (one(stop_sequences=["a"], stop="b"), "stop"),
    (one(max_tokens=0), "max_tokens"),
    (one(temperature="warm"), "temperature"),
    (one(thinking={"type": "loud"}), "thinking.type"),
    (one(thinking={"type": "enabled"}, reasoning_effort="none"), "thinking"),
    (one(output_config={"effort": "some"}), "output_config.effort"),
    (one(output_config={"format": EMPTY_FORMAT}), "output_config.format"),
    (one(output_format=EMPTY_FORMAT), "output_format"),
    (one(thread={"type": "create"}), "thread"),
    (one(compaction={}), "compaction"),
    (one(n=2), "n"),
    (one(logprobs=True), "logprobs"),
    (one(mirostat=2), "mirostat"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED)
async def test_what_is_not_served_is_named(body: Body, field: str) -> None:
    answer = await ask(body, path="/v1/messages")

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].replace(":", "").split()[0] == error["details"]["param"] == field


# Errors and models as Anthropic's clients know them.

VERSION = {"anthropic-version": "2023-06-01"}
ERRORS_HI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
ERRORS_LONG = {"messages": [{"role": "user", "content": "a" * 70}], "max_tokens": 5}
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
    answer = await ask(ERRORS_HI, ScriptedEngine((), error), path="/v1/messages")

    check(answer, status, kind)
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    ("status", "kind", "asked", "more"),
    [
        (400, "invalid_request_error", {"messages": 1}, {}),
        (401, "authentication_error", ERRORS_HI, {"api_keys": ["k"]}),
        (403, "permission_error", ERRORS_HI, {"headers": {"origin": "http://evil"}}),
        (404, "not_found_error", ERRORS_HI, {"path": "/v1/messages/batches"}),
        (404, "not_found_error", {**ERRORS_HI, "model": "claude"}, {}),
        (413, "request_too_large", HUGE, {"body_limit_bytes": 1024}),
        (415, "invalid_request_error", ERRORS_HI, {"headers": {"content-type": "text/plain"}}),
    ],
)
async def test_what_stops_a_request_has_a_type_of_its_own(
    status: int, kind: str, asked: Body, more: Body
) -> None:
    check(await ask(asked, **{"path": "/v1/messages", **more}), status, kind)


async def test_a_key_at_its_limit_and_another_method_have_one_too() -> None:
    app = make_app(ScriptedEngine(), key_limits={"requests_a_minute": 1}, api_keys=["k"])
    async with client_of(app, {"x-api-key": "k"}) as client:
        first, second = [await client.post("/v1/messages", json=ERRORS_HI) for _ in range(2)]
    async with client_of(make_app(ScriptedEngine())) as client:
        got = await client.get("/v1/messages")

    assert first.status_code == 200
    check(second, 429, "rate_limit_error")
    check(got, 405, "invalid_request_error")


@pytest.mark.parametrize(("asked", "tokens"), [(ERRORS_LONG, 73), (HUGE, 1250)])
async def test_a_prompt_that_is_too_long_says_how_long_it_is(asked: Body, tokens: int) -> None:
    answer = await ask(asked, path="/v1/messages")

    check(answer, 400, "invalid_request_error")
    message = f"prompt is too long: {tokens} tokens > 64 maximum"
    assert answer.json()["error"]["message"] == message


async def test_tokens_are_counted_without_a_limit_and_are_those_of_the_answer() -> None:
    counted = await ask(
        {"messages": ERRORS_HI["messages"], "system": "Be kind.", "metadata": {}},
        path="/v1/messages/count_tokens",
    )
    answer = await ask({**ERRORS_HI, "system": "Be kind."}, path="/v1/messages")

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
