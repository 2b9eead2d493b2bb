"""A steady stream says what the stream of the same request says, in more chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import Body, ScriptedEngine, ask, events_of
from tests.gateway.test_watched_stream import ReportingEngine

USER = {"role": "user", "content": "Hi"}
CHAT = {"messages": [USER], "stream": True, "seed": 3}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLS = (
    b'<think>why</think>so <tool_call>{"name": "f", "ar',
    b'guments": {"a": "\xc3\xa7"}}</tool_call>',
)


async def events(engine: ScriptedEngine, body: Body, options: dict[str, bool]) -> list[Any]:
    """Return the stream's chunks, and "[DONE]" if it ends with that."""
    answer = await ask({**body, "stream_options": options}, engine, tool_format="hermes")
    assert answer.status_code == 200, answer.text
    assert "x-picospec-ignored" not in answer.headers
    return events_of(answer.text)


def joined(events: list[Any]) -> Body:
    """Return what the chunks say together, without what is of one request alone."""
    whole: Body = defaultdict(list)
    for event in events:
        if event == "[DONE]" or "error" in event:
            whole["end"].append(event)
            continue
        report = event.get("speculation", {})
        name = report.get("event")
        if name is not None:
            whole[name].append({**report, "tokens_per_s": None})
        whole["usage"] += [event["usage"]] if event.get("usage") else []
        for choice in event["choices"]:
            add(whole, choice, report)
    return whole


def add(whole: Body, choice: Body, report: Body) -> None:
    def to(name: str, items: Iterable[object] | None) -> None:
        whole[f"{name} {choice['index']}"] += list(items or ())

    delta = choice.get("delta", {})
    to("text", delta.get("content") or choice.get("text"))
    to("reasoning", delta.get("reasoning_content"))
    to("finish", [choice["finish_reason"]] if choice["finish_reason"] else ())
    logprobs = choice["logprobs"] or {}
    to("logprobs", logprobs.get("content") or logprobs.get("token_logprobs"))
    for call in delta.get("tool_calls", ()):
        to(f"name {call['index']}", [call["function"].get("name")] * ("id" in call))
        to(f"arguments {call['index']}", call["function"]["arguments"])
    to("origins", (o for n, o in report.get("spans", ()) for _ in range(n)))
    to("tokens", sorted(o for o, n in report.get("tokens", {}).items() for _ in range(n)))
    whole[f"tokens {choice['index']}"].sort()


REQUESTS = {
    "chat": (ScriptedEngine([b"Hel", b"lo \xf0\x9f", b"\x98\x80!"]), CHAT),
    "logprobs": (ScriptedEngine(), {**CHAT, "logprobs": True, "top_logprobs": 1}),
    "a stop string": (ScriptedEngine([b"ab", b"cSTOPde"]), {**CHAT, "stop": "STOP"}),
    "calls": (ScriptedEngine(CALLS), {**CHAT, "tools": [TOOL]}),
    "completions": (ScriptedEngine(), {"prompt": ["a", "b"], "n": 2, "stream": True}),
    "echo": (ScriptedEngine(), {"prompt": "Hi", "echo": True, "stream": True}),
    "drafts": (ReportingEngine(), CHAT),
    "an error": (ScriptedEngine([b"Hel", b"lo"], Unavailable("gone")), CHAT),
}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_it_says_what_the_stream_says_that_is_not_steady(
    request_: tuple[ScriptedEngine, Body], watched: bool
) -> None:
    engine, body = request_
    options = {"include_usage": True, "include_speculation": watched}

    plain = await events(engine, body, options)
    steady = await events(engine, body, {**options, "steady": True})

    assert joined(steady) == joined(plain)
    assert len(steady) > len(plain)


def test_an_answer_that_is_not_streamed_is_not_steady() -> None:
    options = {"steady": True}

    assert ChatRequest(messages=[USER], stream=True, stream_options=options).is_steady
    assert not ChatRequest(messages=[USER], stream_options=options).is_steady
    assert not ChatRequest(messages=[USER], stream=True, stream_options={}).is_steady
