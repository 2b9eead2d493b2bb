"""The verifier's own API answers what no endpoint of an edge serves, if the facts have it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.forwarding import own_api
from edge_agent.link import verifier as verifying
from edge_agent.proxy import DIRECT
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.response_store import ResponseStore, StoredResponse
from gateway.endpoints.services import Json
from gateway.operator_fields import OPERATORS
from gateway.ports import Facts
from picospec.link import Link
from tests.edge_agent.proxying import (
    API,
    ASK,
    CHATS,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    SAID,
    SEEING,
    USAGE,
    USER,
    OwnApi,
    Upstream,
    ask,
    before,
    proxying,
    saying,
    serving,
    streaming,
)
from tests.gateway.scripted import ByteTokenizer
from tests.guards import GUARD_S
from tests.verifier.fake_target import FACTS

PARTS = {
    CHATS: ["text", "image_url", "image"],
    RESPONSES: ["input_text", "output_text", "input_image"],
    "/v1/messages": ["text", "image", "tool_result"],
}
CHUNK = b'data: {"choices":[{"text":"Ho"}],"usage":null}\n\n'
COUNTS = b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode()
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHATS, {**ASK, "bad_words": ["Ho"]}, "bad_words"),
        ("/chat/completions", {**ASK, "bad_words": ["Ho"]}, "bad_words"),
        (CHATS, {**ASK, "echo": True}, "echo"),
        (CHATS, SEEING, "messages"),
        (RESPONSES, {"input": [{**USER, "content": [{"type": "input_image"}]}]}, "input"),
        ("/v1/messages", {"messages": [{**USER, "content": [{"type": "image"}]}]}, "messages"),
        (CHATS, {**ASK, "n": 9}, "n"),
        (CHATS, {**ASK, "n": 17}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 16, "n": 8}, "prompt"),
        (COMPLETIONS, {"prompt": "Hi", "n": 128}, "n"),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": 50}, "logprobs"),
        (CHATS, {**ASK, "temperature": 2.5}, "temperature"),
        (CHATS, {**ASK, "logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "echo": True, "logprobs": 1}, "echo"),
        (COMPLETIONS, {"prompt": [[1], [2]], "use_beam_search": True}, "use_beam_search"),
        (RESPONSES, {"input": [USER], "include_reasoning": False}, "include_reasoning"),
        ("/v1/messages", {**ASK, "vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ],
)
async def test_what_only_the_verifiers_api_serves_is_answered_there(
    path: str, body: dict[str, Any], field: str
) -> None:
    more = {"store": False} if path == RESPONSES else {}
    api = OwnApi(API, saying(SAID), PARTS)
    with capture_logs() as logs:
        answer = await ask(api, path, body)

    assert (answer.status_code, answer.content) == (200, SAID), answer.text
    assert answer.headers["x-picospec-relayed"] == "verifier"
    assert answer.headers["x-picospec-relayed-for"] == field
    assert api.asked == [{**body, "model": "fake", **more}]
    (line,) = [line for line in logs if line.get("proxied_for") == field]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 4)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHATS, {**ASK, "bad_words": ["Ho"]}),
        (DIRECT, {**ASK, "seed": 1}),
        (f"{CHATS}/render", ASK),
    ],
)
async def test_no_field_of_an_operator_is_passed_on(path: str, body: dict[str, Any]) -> None:
    api = OwnApi({**API, f"{CHATS}/render": []}, saying(SAID))
    answer = await ask(api, path, {**dict.fromkeys(OPERATORS, "a"), **body})

    assert answer.status_code == 200, answer.text
    assert api.asked == [{**body, "model": "fake"}]


@pytest.mark.parametrize("more", [{"use_beam_search": True}, {"chat_template": "{{ x }}"}])
async def test_the_verifier_alone_gets_no_chat_that_the_edge_would_not_serve(
    more: dict[str, Any],
) -> None:
    api = OwnApi(API, saying(SAID))
    answer = await ask(api, DIRECT, {**ASK, "seed": 1, **more})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(more)))
    assert api.asked == []


def parts(*kinds: str, field: str = "messages") -> dict[str, Any]:
    return {field: [{**USER, "content": [{"type": kind, "text": "a"} for kind in kinds]}]}


RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "document"}]}
TURNS = {"messages": [{**USER, "content": [{"type": "image"}, RESULT]}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHATS, {**parts("text", "file")}, "messages.0.content.1.type"),
        (CHATS, {**parts("image_url", "own")}, "messages.0.content.1.type"),
        (CHATS, {**parts("image_url", "reasoning")}, "messages.0.content.1.type"),
        (CHATS, {**parts("refusal"), "bad_words": ["Ho"]}, "messages.0.content.0.type"),
        (RESPONSES, parts("input_file", field="input"), "input.0.content.0.type"),
        ("/v1/messages", TURNS, "messages.0.content.1.content.0.type"),
        ("/v1/messages", {**ASK, "system": [{"type": "image"}]}, "system.0.type"),
    ],
)
async def test_a_part_that_the_verifiers_model_does_not_take_is_named(
    path: str, body: dict[str, Any], param: str
) -> None:
    api = OwnApi(API, saying(SAID), PARTS)
    answer = await ask(api, path, body)

    error = answer.json()["error"]
    assert (answer.status_code, api.asked) == (400, []), answer.text
    assert error["message"].startswith(f"{param}: no such part is served; ")


async def test_a_pages_chat_is_proxied_without_being_joined_again() -> None:
    body, api = {**ASK, "bad_words": ["Ho"]}, OwnApi(API, saying(SAID))
    answer = await ask(api, CHATS, {**body, "background": True})

    assert (answer.status_code, api.asked) == (200, [{**body, "model": "fake"}])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHATS, {**ASK, "prompt_logprobs": 1}, "prompt_logprobs"),  # not in the facts
        (CHATS, {**ASK, "bad_words": ["Ho"], "mirostat": 2}, "mirostat"),
        (CHATS, {**ASK, "bad_words": ["Ho"], "think": False}, "think"),
        (CHATS, {"bad_words": ["Ho"]}, "messages"),
        (CHATS, {**ASK, "model": ["fake"]}, "model"),
        (CHATS, {**ASK, "n": 9, "model": ["fake"]}, "model"),
        (CHATS, {**ASK, "max_completion_tokens": 4}, "max_completion_tokens"),
        (CHATS, {"messages": [{**USER, "audio": {"id": "a"}}]}, "messages.0.audio"),
        (CHATS, {**ASK, "n": 129}, "n"),
        (CHATS, {**ASK, "bad_words": ["Ho"], "n": "2"}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "prompt"),
        (
            COMPLETIONS,
            {"prompt": ["a"] * 65, "use_beam_search": True, "n": 2},
            "use_beam_search",
        ),
        (
            RESPONSES,
            {"input": "Hi", "include_reasoning": False, "background": True},
            "background",
        ),
    ],
)
async def test_what_nobody_serves_or_would_be_ignored_there_is_named(
    path: str, body: dict[str, Any], field: str
) -> None:
    api = OwnApi(API, saying(SAID))
    answer = await ask(api, path, body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert "x-picospec-relayed" not in answer.headers
    assert api.asked == []


async def test_a_chat_that_only_the_verifier_can_render_is_answered_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def tokenizer(*_: object) -> ByteTokenizer:
        return ByteTokenizer(takes_tools=False)

    monkeypatch.setattr(TargetTokenizer, "__call__", tokenizer)
    api, unrendered = OwnApi(API, saying(SAID)), {"role": "assistant", "content": "Hi"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with before(api) as client:
        answer = await client.post(CHATS, json={"messages": [unrendered]})
        unseen = await client.post(CHATS, json={**ASK, "tools": tools})

    assert (answer.content, answer.headers["x-picospec-relayed-for"]) == (SAID, "messages")
    assert (unseen.status_code, unseen.json()["error"]["param"]) == (400, "tools")


async def test_a_prompt_is_rendered_where_the_verifier_does_so() -> None:
    path = "/v1/completions/render"
    api = OwnApi({path: []}, saying(b"[]"))
    async with before(api, model_aliases=["alias"]) as client:
        rendered = await client.post(path, json={"prompt": "Hi", "model": "alias"})
        absent = await client.post("/v1/chat/completions/render", json=ASK)
        wrong = await client.post(path, json={"prompt": "Hi", "model": ["alias"]})

    assert (rendered.content, absent.status_code, wrong.status_code) == (b"[]", 404, 400)
    assert api.asked == [{"prompt": "Hi", "model": "fake"}]


RENDER = "/v1/completions/render"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DIRECT, {**ASK, "seed": 1}),
        (RENDER, {"prompt": "Hi"}),
        (CHATS, {**ASK, "bad_words": ["Ho"]}),
        (EMBEDDINGS, {"input": "Hi"}),
    ],
)
async def test_nothing_is_proxied_over_an_idle_connection_that_carries_nothing(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(verifying, "now_with_sleep", lambda: now)
    api = OwnApi({**API, RENDER: [], EMBEDDINGS: []}, saying(SAID))
    async with (
        serving(api.app()) as url,
        Link(("127.0.0.1", int(url.split(":")[2]))) as link,
    ):
        there = f"http://127.0.0.1:{link.port}"
        async with proxying(Upstream(), verifier=there, proxy={"url": None}) as client:
            before = await client.post(path, json=body)
            for connection in link.connections:
                connection.stall(True)
            now += verifying.IDLE_S + 1

            async with asyncio.timeout(GUARD_S):
                after = await client.post(path, json=body)

    assert before.content == after.content == SAID


async def test_no_answer_of_the_verifier_alone_takes_the_connection_of_sessions() -> None:
    versions = set[str]()

    async def answer(request: Request) -> Response:
        versions.add(request.scope["http_version"])  # sessions have HTTP/2
        return await saying(SAID)(request)

    async with before(OwnApi({**API, RENDER: []}, answer)) as client:
        await client.post(DIRECT, json={**ASK, "seed": 1})
        await client.post(RENDER, json={"prompt": "Hi"})
        await client.post(CHATS, json={**ASK, "bad_words": ["Ho"]})

    assert versions == {"1.1"}


async def test_what_changes_no_answer_is_left_out_and_named() -> None:
    api = OwnApi(API, saying(SAID))
    odd = {"bad_words": ["Ho"], "mirostat": 0, "user": "ann", "own": 1, "n": None}
    answer = await ask(api, CHATS, {**ASK, **odd})

    assert api.asked == [{**ASK, "bad_words": ["Ho"], "model": "fake"}]
    assert answer.headers["x-picospec-ignored"] == "mirostat, user, own"


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_is_charged_by_its_usage_which_only_they_see_who_ask(
    cut: int, asks: bool
) -> None:
    stream = CHUNK * 3 + COUNTS + DONE

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(stream), cut):
            yield stream[at : at + cut]

    api = OwnApi(API, streaming("text/event-stream", pieces()))
    options = {"stream_options": {"include_usage": asks, "continuous_usage_stats": True}}
    async with before(api) as client:
        with capture_logs() as logs:
            asked = {**ASK, **options, "bad_words": ["Ho"], "stream": True}
            answer = await client.post(CHATS, json=asked)

    assert answer.content == (stream if asks else CHUNK * 3 + DONE)
    wanted = options["stream_options"] if asks else {"include_usage": True}
    assert api.asked[0]["stream_options"] == wanted
    (line,) = [line for line in logs if line.get("proxied")]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 4)


async def test_a_body_may_be_larger_than_a_text_if_it_has_images() -> None:
    def chat(kind: str, size: int) -> dict[str, Any]:
        return {"messages": [{**USER, "content": [{"type": kind, "text": "a" * size}]}]}

    api, cases = OwnApi(API, saying(SAID), PARTS), [("image", 15), ("image", 17), ("text", 15)]
    async with before(api) as client:
        found = [await client.post(CHATS, json=chat(k, n << 20)) for k, n in cases]

    assert [answer.status_code for answer in found] == [200, 413, 413]


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ({"prompt": "a"}, 2),
        ({"prompt": [1, 2, 3]}, 2),
        ({"prompt": ["a", "b"]}, 4),
        ({"prompt": [[1], [2], [3]]}, 6),
        ({"prompt": "a", "prompt_embeds": ["b", "c"]}, 6),
        ({"prompt": [1, [2], [3]]}, 6),
        ({"prompt": []}, 2),
    ],
)
def test_no_form_of_prompts_counts_as_fewer_answers(prompts: Json, answers: int) -> None:
    asked = {**prompts, "n": 2, "stream": "yes", "stream_options": {"include_usage": "yes"}}
    facts = msgspec.structs.replace(FACTS, served={COMPLETIONS: [*asked]})
    made = own_api(COMPLETIONS, asked, "n", Facts.of(facts), CompletionRequest)

    assert (made.answers, made.hides_usage) == (answers, True)
    assert made.fields["stream_options"] == {"include_usage": True}


async def test_its_choices_prompts_and_beams_count_as_answers() -> None:
    api = OwnApi(API, saying(SAID))
    body = {"prompt": ["a", "b"], "use_beam_search": True, "n": 3}
    async with before(api, key_limits={"sessions": 5}) as client:
        many = await client.post(COMPLETIONS, json=body)
        few = await client.post(COMPLETIONS, json={**body, "n": 2})

        beyond = {"prompt": ["a"] * 9, "n": 2}
        third = await client.post(COMPLETIONS, json=beyond)

    assert (many.status_code, few.status_code, len(api.asked)) == (429, 200, 1)
    assert third.status_code == 429


async def test_an_answer_that_breaks_off_says_why_no_other_verifier_goes_on() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield CHUNK
        raise ConnectionError

    api = OwnApi(API, streaming("text/event-stream", cut()))
    answer = await ask(api, CHATS, {**ASK, "bad_words": ["Ho"], "stream": True})

    assert answer.content.startswith(CHUNK)
    assert "it alone serves bad_words, so no other one goes on" in answer.text


async def test_a_response_goes_with_the_history_that_the_edge_keeps() -> None:
    api = OwnApi(API, saying(SAID), PARTS)
    odd = {"include_reasoning": False}
    kept = StoredResponse(
        b'{"output": [{"type": "message", "role": "assistant", "content": "A"}]}',
        b'[{"role": "user", "content": "Q"}]',
    )
    async with before(api) as client:
        with patch.object(
            ResponseStore, "find", lambda _, id: kept if id == "resp_1" else None
        ):
            body = {"previous_response_id": "resp_1", "input": "Hi", **odd}
            found = await client.post(RESPONSES, json=body)
            body["previous_response_id"] = "resp_2"
            absent = await client.post(RESPONSES, json=body)

    texts = [item["content"] for item in api.asked[0]["input"]]
    assert [text if isinstance(text, str) else text[0]["text"] for text in texts] == [
        "Q",
        "A",
        "Hi",
    ]
    assert (found.status_code, api.asked[0]["store"]) == (200, False)
    assert found.headers["x-picospec-ignored"] == "store"
    assert "previous_response_id" not in api.asked[0]
    assert absent.json()["error"]["code"] == "previous_response_not_found"
