"""A client: what it asks, and what it got of a streamed answer, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import httpx

from tests.local_models.chats import Json, tool, user

MODEL: Final = "smollm2-135m"
WITHIN_S: Final = 150.0


@dataclass
class Answer:
    """Equal answers have the same text, calls, log-probabilities, usage, end and error."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Of each call the name and the arguments."""

    finish: str = ""
    usage: Json | None = None
    logprobs: list[Json] = field(default_factory=list)
    error: Json | None = None
    came_at: list[float] = field(default_factory=list, compare=False)
    """When each piece came."""

    @property
    def shown(self) -> int:
        """Characters that have come."""
        return len(self.text) + sum(len(part) for call in self.calls for part in call)

    def gap_s(self, since: float = 0.0) -> float:
        """Return the longest time between two pieces, of those that ended later than that."""
        gaps = (end - begin for begin, end in pairwise(self.came_at) if end > since)
        return max(gaps, default=0.0)

    @property
    def outcome(self) -> str:
        """In one word: how it ended."""
        if self.error:
            return str(self.error.get("code") or "error")
        return self.finish or "cut"

    def take(self, event: Json) -> None:
        self.error = event.get("error", self.error)
        if usage := event.get("usage"):  # but for what caches had
            self.usage = {**usage, "prompt_tokens_details": None}
        for choice in event.get("choices", ()):
            self.finish = choice["finish_reason"] or self.finish
            self.logprobs += (choice.get("logprobs") or {}).get("content") or []
            delta, before = choice["delta"], self.shown
            self.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                self._take_call(call)
            if self.shown > before:
                self.came_at.append(time.monotonic())

    def _take_call(self, call: Json) -> None:
        while len(self.calls) <= call["index"]:
            self.calls.append(["", ""])
        function = call.get("function", {})
        self.calls[call["index"]][0] += function.get("name") or ""
        self.calls[call["index"]][1] += function.get("arguments") or ""


Watch = Callable[[Answer], object]


async def ask(
    http: httpx.AsyncClient,
    url: str,
    body: Json,
    watch: Watch = lambda answer: None,
) -> Answer:
    """Ask for an answer, whatever becomes of it; `watch` is called after each event."""
    answer = Answer()
    whole = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
    path = f"{url}/v1/chat/completions"
    try:
        async with http.stream("POST", path, json=whole, timeout=WITHIN_S) as response:
            if response.status_code != 200:
                answer.error = json.loads(await response.aread())["error"]
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    answer.take(json.loads(line.removeprefix("data: ")))
                    watch(answer)
    except httpx.TransportError as error:
        answer.error = {"code": "connection", "message": repr(error)}
    return answer


# --- what is asked

_STORY: Final = "Tell me a long story about a lighthouse keeper and his daughter."
_SHAPED: Final[Json] = {
    "presence_penalty": 0.6, "frequency_penalty": 0.3, "repetition_penalty": 1.1,
    "logit_bias": {"28": 2.0, "198": -1.0}, "logprobs": True, "top_logprobs": 3,
    "reasoning_format": "none",
}  # fmt: skip
_KEEPER: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "keepers": {"type": "array", "items": _KEEPER, "minItems": 5, "maxItems": 5}
    },
    "required": ["keepers"],
    "additionalProperties": False,
}
_NOTES: Final = {
    "type": "array", "minItems": 4, "maxItems": 4,
    "items": {"type": "string", "minLength": 12, "maxLength": 30},
}  # fmt: skip
_TOOL: Final = tool("log_book", notes=_NOTES)

KINDS: Final[dict[str, Json]] = {
    "greedy": {"messages": [user(_STORY)], "temperature": 0, "max_tokens": 70},
    "drawn": {
        "messages": [user(_STORY)], "temperature": 1, "seed": 11, "top_p": 0.95,
        "min_tokens": 60, "max_tokens": 70,
    },
    "schema": {
        "messages": [user("List five lighthouse keepers as JSON.")], "temperature": 1,
        "seed": 7, "max_tokens": 90, **_SHAPED,
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "keepers", "schema": _SCHEMA},
        },
    },
    "tools": {
        "messages": [user("Write four notes into the log book.")], "temperature": 1, "seed": 5,
        "max_tokens": 90, **_SHAPED, "tools": [_TOOL], "tool_choice": "required",
    },
}  # fmt: skip
"""Requests by what is special of them; each answer has some seventy tokens."""

BRIEF: Final[Json] = {"messages": [user("Name a colour.")], "temperature": 0, "max_tokens": 8}
