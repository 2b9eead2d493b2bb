"""Completions: raw prompts, text between two texts, and the prompt as part of the answer; and
/tokenize and /detokenize, which speak as llama-server does, and as vLLM does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial, reduce
from operator import getitem
from typing import Final

import httpx
import pytest
from starlette.types import Message

from picospec.gateway.doors.door import Answer
from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    COUNTED,
    END,
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    events_of,
    job_of,
    make_app,
    refusal,
)
from tests.gateway.test_sdk import CALL, HERMES, WEATHER


def texts(answer: httpx.Response) -> list[str]:
    return [choice["text"] for choice in answer.json()["choices"]]


async def test_a_suffix_makes_a_prompt_for_the_text_before_it() -> None:
    engine = ScriptedEngine()

    await ask({"prompt": ["a", "b"], "suffix": "z"}, engine)
    await ask({"prompt": "a", "suffix": ""}, engine)

    assert [bytes(job.prompt) for job in engine.jobs] == [b"<a|z>", b"<b|z>", b"a"]


async def test_a_model_that_cannot_fill_in_is_a_400_that_names_the_suffix() -> None:
    class Plain(ByteTokenizer):
        def infill(self, *_: object, **__: object) -> list[int]:
            raise ValueError("the model has no tokens for that")

    refused = await refusal({"prompt": "a", "suffix": "z"}, tokenizer=Plain())

    assert refused == (400, "suffix")


async def test_the_tokens_that_begin_a_prompt_can_be_left_out() -> None:
    tokenizer = ByteTokenizer(begins=(7,))

    begun = await job_of({"prompt": "a"}, tokenizer=tokenizer)
    bare = await job_of({"prompt": "a", "add_special_tokens": False}, tokenizer=tokenizer)

    assert (begun.prompt, bare.prompt) == ((7, 97), (97,))


async def test_echo_puts_each_prompt_before_its_choices() -> None:
    engine = ScriptedEngine(lambda job: [bytes(job.prompt[:1]), b"!"])

    several = await ask({"prompt": ["ab", "c"], "n": 2, "echo": True}, engine)
    tokens = await ask({"prompt": [100, END], "echo": True}, engine)

    assert texts(several) == ["aba!", "aba!", "cc!", "cc!"]
    assert [job.seed for job in engine.jobs[:4]] == [41, 42, 41, 42]
    assert texts(tokens) == ["d<end>d!"]
    assert several.json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("script", [[b"Hi", b"!"], []])
async def test_echo_streams_the_prompt_first(script: list[bytes]) -> None:
    answer = await ask({"prompt": "ab", "echo": True, "stream": True}, ScriptedEngine(script))

    *events, _ = events_of(answer.text)
    shown = [event["choices"][0]["text"] for event in events]
    assert "".join(shown) == "ab" + b"".join(script).decode()
    assert shown[0].startswith("ab")


BOS = 7
MESSAGES = [{"role": "user", "content": "hi"}]


async def post(path: str, body: Body) -> httpx.Response:
    tokenizer = ByteTokenizer(begins=(BOS,), takes_tools=False)
    return await ask(body, path=path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [*b"ab"]),
        ({"content": "ab", "add_special": True}, [BOS, *b"ab"]),
        ({"content": ""}, []),
        ({"prompt": "ab"}, [BOS, *b"ab"]),
        ({"prompt": "ab", "add_special_tokens": False, "model": MODEL}, [*b"ab"]),
        ({"messages": MESSAGES}, [BOS, *b"u:hi\n"]),
        ({"messages": MESSAGES, "add_generation_prompt": True}, [BOS, *b"u:hi\n"]),
    ],
)
async def test_texts_and_chats_become_tokens(body: Body, tokens: list[int]) -> None:
    answer = await post("/tokenize", body)

    assert answer.json() == {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": CONTEXT_TOKENS,
        "token_strs": None,
    }


async def test_pieces_come_as_each_server_names_them() -> None:
    llama = await post("/tokenize", {"content": "aé", "with_pieces": True})
    vllm = await post("/tokenize", {"messages": MESSAGES, "return_token_strs": True})

    assert llama.json()["tokens"][0] == {"id": 97, "piece": "a"}
    assert len(llama.json()["tokens"]) == 3
    assert vllm.json()["token_strs"] == ["\x07", "u", ":", "h", "i", "\n"]


async def test_tokens_become_text_with_special_tokens_spelt_out() -> None:
    answer = await post("/detokenize", {"tokens": [104, 0xC3, 0xA9, END]})

    assert answer.json() == {"content": "hé<end>", "prompt": "hé<end>"}


# Each door tells, in its own words, how much of a prompt the target did not have to read.

DETAILS: Final = "usage/prompt_tokens_details/cached_tokens"
INPUT: Final = "usage/input_tokens"
CHAT: Final = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9}
DOORS: Final[dict[str, tuple[Body, str, str]]] = {
    "/v1/chat/completions": (CHAT, DETAILS, "usage/prompt_tokens"),
    "/v1/completions": ({"prompt": "Hello"}, DETAILS, "usage/prompt_tokens"),
    "/v1/responses": ({"input": "Hello"}, "usage/input_tokens_details/cached_tokens", INPUT),
    "/v1/messages": (CHAT, "usage/cache_read_input_tokens", INPUT),
    "/completion": ({"prompt": "Hello"}, "timings/cache_n", "timings/prompt_n"),
}
ENGINE: Final = ScriptedEngine(statistics=replace(COUNTED, cached_tokens=3))


def at(answer: object, path: str) -> int:
    found: int = reduce(getitem, path.split("/"), answer)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("door", DOORS)
async def test_a_door_tells_what_was_cached(door: str, stream: bool) -> None:
    body, cached, read = DOORS[door]
    asked = {**body, "stream": stream}
    if stream and "usage" in cached and "completions" in door:
        asked["stream_options"] = {"include_usage": True}

    answer = await ask(asked, ENGINE, path=door)

    events = events_of(answer.text) if stream else [answer.json()]
    bodies = [event.get("response", event) for event in events if event != "[DONE]"]
    last = [each for each in bodies if each.get("usage") or each.get("timings")][-1]
    prompt = len("Hello") if "prompt" in body else len("u:Hello\n")
    excludes = door in ("/v1/messages", "/completion")
    assert (at(last, cached), at(last, read)) == (3, prompt - 3 * excludes)


async def test_choices_of_one_prompt_count_its_cached_tokens_once() -> None:
    answer = await ask({"prompt": ["Hello", "Bye"], "n": 2}, ENGINE)

    assert at(answer.json(), DETAILS) == 2 * 3


# A stream that has nothing to show yet says so, and is else as it always is.

COMMENT = Answer.keep_alive
STREAM = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


slow = partial(ScriptedEngine, begins_after_s=0.15)


@pytest.mark.parametrize("choices", [1, 3])
async def test_comments_come_until_the_first_event_and_change_none(choices: int) -> None:
    body = STREAM | {"n": choices}

    late = await ask(body, slow(pause=lambda: asyncio.sleep(0.03)), keep_alive_s=0.02)
    quick = await ask(body, keep_alive_s=0.02)

    comments, events = late.text.split("data: ", 1)
    assert comments == COMMENT.decode() * comments.count(COMMENT.decode()) != ""
    assert late.headers["content-type"] == quick.headers["content-type"]
    assert COMMENT.decode() not in events + quick.text
    assert events.count("data: ") == quick.text.count("data: ") - 1


async def test_an_error_after_a_comment_is_an_event() -> None:
    late, quick = [
        await ask(STREAM, engine((), Unavailable("gone")), keep_alive_s=0.02)
        for engine in (slow, ScriptedEngine)
    ]

    assert (late.status_code, quick.status_code) == (200, 503)
    assert late.text.startswith(COMMENT.decode())
    assert '"code":"verifier_unavailable"' in late.text
    assert "[DONE]" not in late.text


async def test_a_call_that_is_shown_when_it_is_whole_is_waited_for() -> None:
    body = {"messages": STREAM["messages"], "tools": [WEATHER]}
    engine = ScriptedEngine(
        script=[bytes([byte]) for byte in (CALL % "Oslo").encode()],
        pause=lambda: asyncio.sleep(0.01),
    )

    settings = {"tokenizer": HERMES, "keep_alive_s": 0.02}
    answer = await ask(body, engine, path="/api/chat", **settings)

    *waits, call, _ = answer.text.splitlines()
    assert len(waits) > 3
    assert "Oslo" in call


async def test_a_comment_that_a_slow_client_has_not_taken_is_not_overtaken() -> None:
    app = make_app(slow(), keep_alive_s=0.02)
    sending, most = 0, 0
    bodies: list[bytes] = []
    requests = [{"type": "http.request", "body": json.dumps(STREAM).encode()}]

    async def receive() -> Message:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal sending, most
        sending += 1
        most = max(most, sending)
        await asyncio.sleep(0.2 if message.get("body") == COMMENT else 0)
        bodies.append(message.get("body", b""))
        sending -= 1

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)

    assert COMMENT in bodies
    assert b"".join(bodies).count(b"[DONE]") == 1
    assert most == 1
