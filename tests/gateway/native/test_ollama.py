"""Ollama's clients get its fields, made of the tokens that any other door gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import (
    FEATURES,
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    client_of,
    make_app,
    meaning,
)
from tests.gateway.test_completions import slow

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CALL = b'<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TEMPLATE = "<think> <tool_call>"
OPTIONS = {
    "num_ctx": 8192, "num_predict": 9, "temperature": 0.5, "top_k": 3, "top_p": 0.5,
    "min_p": 0.1, "seed": 7, "stop": ["x"], "presence_penalty": 1, "num_thread": 4,
}  # fmt: skip
FLAT = {name: value for name, value in OPTIONS.items() if not name.startswith("num_")}
SYSTEM = {"role": "system", "content": "Be kind."}
CALLING = {"role": "assistant", "content": ""}


def engine(*script: bytes) -> ScriptedEngine:
    return ScriptedEngine(script or (b"Hi", b" there"), features=FEATURES, context_tokens=4096)


def lines(text: str) -> list[Body]:
    return [json.loads(line) for line in text.splitlines()]


def chat(**more: object) -> Body:
    return {"messages": HELLO, **more}


def text(**more: object) -> Body:
    return {"prompt": "a", **more}


def calls(arguments: object, **more: str) -> list[Body]:
    return [{**more, "function": {"name": "f", "arguments": arguments}}]


HISTORY = [
    SYSTEM,
    *HELLO,
    {**CALLING, "thinking": "Hm.", "tool_calls": calls({"a": 1})},
    {"role": "tool", "tool_name": "f", "content": "2"},
]
OPENAIS = [
    SYSTEM,
    *HELLO,
    {**CALLING, "reasoning_content": "Hm.", "tool_calls": calls('{"a": 1}', type="function")},
    {"role": "tool", "name": "f", "content": "2"},
]


@pytest.mark.parametrize(
    ("path", "body", "same"),
    [
        ("chat", chat(), chat()),
        ("chat", chat(options=OPTIONS, model=f"{MODEL}:latest"), chat(max_tokens=9, **FLAT)),
        ("chat", chat(format=SCHEMA, options={"num_predict": -2}), chat(guided_json=SCHEMA)),
        ("chat", chat(format="json"), chat(response_format={"type": "json_object"})),
        ("chat", chat(messages=HISTORY, tools=[TOOL]), chat(messages=OPENAIS, tools=[TOOL])),
        (
            "generate",
            {"prompt": "Hello", "system": "Be kind.", "options": OPTIONS},
            chat(messages=[SYSTEM, *HELLO], max_tokens=9, **FLAT),
        ),
        ("generate", text(raw=True, options={"num_predict": None}), text(max_tokens=-1)),
        (
            "generate",
            text(suffix="b", options={"num_predict": 4}),
            text(suffix="b", max_tokens=4),
        ),
    ],
)
async def test_a_request_means_the_same_as_at_openais_doors(
    path: str, body: Body, same: Body
) -> None:
    ours = await meaning(body, path=f"/api/{path}", template="")

    assert ours == await meaning(same, template="")


@pytest.mark.parametrize(
    "script",
    [
        (b"Hi", b" there"),
        (b"<think>Well", b", hm.</think>", b"Hi"),
        (b"Let me ", b"look.\n", CALL[:30], CALL[30:], b"\n" + CALL),
        (b"<think>Well</think>" + CALL,),
        (CALL[:-20],),
        tuple(bytes([byte]) for byte in CALL + CALL),
    ],
)
async def test_a_stream_adds_up_to_the_whole(script: tuple[bytes, ...]) -> None:
    tokenizer = ByteTokenizer(template=TEMPLATE)
    stream, answer = [
        await ask(body, engine(*script), path="/api/chat", tokenizer=tokenizer)
        for body in (chat(tools=[TOOL]), chat(tools=[TOOL], stream=False))
    ]

    *parts, last = lines(stream.text)
    message, whole = dict[str, Any](), answer.json()
    for part in parts:
        assert not part["done"]
        for name, value in part["message"].items():
            before = type(value)() if name == "role" else message.get(name, type(value)())
            message[name] = before + value
    for call in (*message.get("tool_calls", ()), *whole["message"].get("tool_calls", ())):
        assert call.pop("id").startswith("call_")
        assert call["function"]["arguments"] == {"a": 1}
    assert message == whole["message"]
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert (last["done"], last["done_reason"]) == (whole["done"], "stop") == (True, "stop")
    for count in ("prompt_eval_count", "eval_count"):
        assert last[count] == whole[count]
    assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"] > 0


async def test_log_probabilities_are_told_of_each_token() -> None:
    for raw in (False, True):
        body = text(logprobs=True, top_logprobs=1, raw=raw)
        answer = await ask(body, engine(), path="/api/generate")

        found = [entry for line in lines(answer.text) for entry in line.get("logprobs", ())]
        assert [entry["token"] for entry in found] == [*"Hi there"]
        assert found[0]["top_logprobs"][0]["logprob"] == -0.5


@pytest.mark.parametrize(
    ("path", "body"),
    [("chat", {"messages": []}), ("generate", {}), ("generate", {"prompt": ""})],
)
async def test_who_asks_nothing_learns_that_the_model_is_loaded(path: str, body: Body) -> None:
    serving = engine()

    loaded = await ask({"model": MODEL, "keep_alive": 0, **body}, serving, path=f"/api/{path}")
    unknown = await ask({"model": "other", **body}, serving, path=f"/api/{path}")

    assert (loaded.json()["done"], loaded.json()["done_reason"]) == (True, "load")
    assert loaded.headers["x-picospec-ignored"] == "keep_alive"
    assert (unknown.status_code, serving.jobs) == (404, [])


@pytest.mark.parametrize(
    ("path", "body", "status", "begins"),
    [
        ("chat", chat(options={"temperature": 3}), 400, "options.temperature:"),
        ("chat", chat(options={"num_predict": "a"}), 400, "options.num_predict:"),
        ("chat", chat(options={"mirostat": 2}), 400, "options.mirostat "),
        ("chat", chat(options={"frequency_penalty": 1}), 400, "options.freq"),
        ("chat", chat(format="yaml"), 400, "format"),
        ("chat", chat(n=2), 400, "n:"),
        ("chat", {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role:"),
        ("chat", {"messages": [{**HELLO[0], "images": ["aa"]}]}, 400, "messages:"),
        ("chat", chat(tools=[{"type": "custom"}]), 400, "tools.0.function:"),
        ("chat", chat(model="other"), 404, "the model 'other'"),
        ("generate", text(template="{{ .Prompt }}"), 400, "template:"),
        ("generate", text(context=[1]), 400, "context:"),
        ("generate", text(images=["aa"]), 400, "images:"),
        ("generate", text(raw=True, system="b"), 400, "system:"),
        ("show", {}, 400, "model:"),
        ("show", {"model": "other"}, 404, "the model 'other'"),
        ("pull", {"model": MODEL}, 501, "/api/pull is not served"),
        ("embed", {"model": MODEL}, 501, "/api/embed is not served: an edge relays"),
    ],
)
async def test_errors_are_a_text_that_begins_with_the_clients_field(
    path: str, body: Body, status: int, begins: str
) -> None:
    answer = await ask(body, engine(), path=f"/api/{path}")

    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].startswith(begins), answer.text


async def test_an_error_in_mid_stream_is_the_last_line() -> None:
    serving = ScriptedEngine((b"Hi",), then=Unavailable("gone"))

    answer = await ask(chat(), serving, path="/api/chat")

    first, last = lines(answer.text)
    assert (first["message"]["content"], last) == ("Hi", {"error": "gone"})


@pytest.mark.parametrize(("path", "body"), [("chat", chat()), ("generate", text())])
async def test_lines_without_text_keep_the_connection_until_there_is_some(
    path: str, body: Body
) -> None:
    answers = [
        await ask(body, serving, path=f"/api/{path}", keep_alive_s=keep_alive_s)
        for serving, keep_alive_s in ((slow(), 0.02), (engine(), 9.0))
    ]

    late, early = (
        [line.get("response", line.get("message")) for line in lines(each.text)]
        for each in answers
    )
    waits = len(late) - len(early)
    assert waits > 0
    assert late == [early[-1]] * waits + early


async def test_models_are_told_with_their_length_and_what_they_can_do() -> None:
    tokenizer = ByteTokenizer(template=TEMPLATE)
    app = make_app(engine(), model_aliases=["other"], tokenizer=tokenizer)
    async with client_of(app) as client:
        tags = (await client.get("/api/tags")).json()["models"]
        running = (await client.get("/api/ps")).json()["models"]
        shown = (await client.post("/api/show", json={"name": f"{MODEL}:latest"})).json()
        version = (await client.get("/api/version")).json()["version"]

    assert [each["model"] for each in tags] == [MODEL, "other"]
    assert [each["name"] for each in running] == [MODEL, "other"]
    assert running[0]["context_length"] == 4096
    assert set(shown["capabilities"]) == {"completion", "tools", "insert", "thinking"}
    length = f"{shown['model_info']['general.architecture']}.context_length"
    assert shown["model_info"][length] == 4096
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


async def test_the_root_is_the_page_in_a_browser_and_says_to_others_that_it_runs() -> None:
    async with client_of(make_app(engine(), api_keys=["k"])) as client:
        page = await client.get("/", headers={"accept": "text/html,application/xhtml+xml"})
        text = await client.get("/", headers={"accept": "application/json"})
        head = await client.head("/")

    assert page.text.startswith("<!doctype html>")
    assert text.text == "Ollama is running"
    assert (head.status_code, head.content) == (200, b"")
    assert {each.headers["vary"] for each in (page, text, head)} == {"accept"}
