"""Each door tells, in its own words, how much of a prompt the target did not have to read."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import getitem
from typing import Final

import pytest

from tests.gateway.scripted import COUNTED, Body, ScriptedEngine, ask, events_of

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
