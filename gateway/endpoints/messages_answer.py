"""Writes messages, the events of their streams, errors, and models in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final

from pydantic_core import from_json

from gateway.endpoints.endpoint import (
    Answer,
    EndpointRequest,
    Heading,
    Json,
    parts_of,
    sent_event,
)
from gateway.endpoints.messages import MessagesRequest
from gateway.errors import (
    ApiError,
    Draining,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    RateLimited,
    Shape,
    TooLarge,
    Unauthorized,
)
from gateway.output.detokenise import Finish, TextDelta
from gateway.output.message import CallStart, whole_calls
from gateway.ports import Facts

# Writes the content of a message: its blocks, whole or as the events of a stream.
#
# Blocks come one after the other, each with a number. A block begins, grows by deltas and ends
# before the next one begins; a client joins the deltas without looking ahead.

SIGNATURE: Final = "picospec"
"""Reasoning gets this signature: clients send it back only with one. Nobody checks it."""

_TEXT: Final[Json] = {"type": "text", "text": "", "citations": None}
_THINKING: Final[Json] = {"type": "thinking", "thinking": "", "signature": ""}


def content_of(whole: TextDelta) -> list[Json]:
    """Return the blocks of a message that is not streamed."""
    parsed = whole.parsed
    blocks: list[Json] = []
    if parsed is not None and parsed.reasoning:
        blocks.append({**_THINKING, "thinking": parsed.reasoning, "signature": SIGNATURE})
    if whole.text:
        blocks.append({**_TEXT, "text": whole.text})
    calls = whole_calls(parsed.calls if parsed is not None else ())
    return blocks + [{**_call(start), "input": _input(text)} for start, text in calls]


def _call(start: CallStart) -> Json:
    """Return a call that has no input yet."""
    name = start.id.removeprefix("call_")
    shown = start.id if name == start.id else f"toolu_{name}"
    call: Json = {"type": "tool_use", "id": shown, "name": start.name, "input": {}}
    return {**call, "caller": {"type": "direct"}}


def _input(arguments: str) -> object:
    """Return the object of a call's arguments; the complete part of it if the text is cut."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class ContentEvents:
    """Makes the events of one message's content from its deltas, in order."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""
        """The open block has this type; "" means that none is open."""

    def read(self, delta: TextDelta) -> Iterator[Json]:
        """Yield the events of a delta."""
        for kind, text, start in parts_of(delta):
            if start is not None:
                yield from self._begin(_call(start))
            elif kind == "call":
                yield self._delta("input_json", text, "partial_json")
            elif text:
                block = _THINKING if kind == "reasoning" else _TEXT
                if self._open != block["type"]:
                    yield from self._begin(block)
                yield self._delta(self._open, text)

    def end(self) -> Iterator[Json]:
        """Yield the events that end the open block, if there is one."""
        if self._open == "thinking":
            yield self._delta("signature", SIGNATURE)
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _begin(self, block: Json) -> Iterator[Json]:
        yield from self.end()
        self._index += 1
        self._open = str(block["type"])
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, text: str, name: str = "") -> Json:
        delta = {"type": f"{kind}_delta", name or kind: text}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


_TYPES: Final = {
    Unauthorized: "authentication_error",
    Forbidden: "permission_error",
    NotFound: "not_found_error",
    TooLarge: "request_too_large",
    RateLimited: "rate_limit_error",
    Overloaded: "overloaded_error",
    Draining: "overloaded_error",
}
_REASONS: Final[dict[Finish | None, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


def convert(body: MessagesRequest) -> EndpointRequest:
    """Return the chat that a request asks for. Raises InvalidRequest."""
    chat = body.chat()
    ignored = (*body.ignored(), *chat.unserved_options)
    return EndpointRequest(chat, "msg_", MessageAnswer, ignored, body.names())


_NONE: Final = dict.fromkeys(
    ("cache_creation", "server_tool_use", "service_tier", "inference_geo")
)
"""Anthropic's `usage` has these fields, which may be null."""


class MessageAnswer(Answer):
    keep_alive: ClassVar[bytes] = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._content: ContentEvents | None = None
        self._last = TextDelta("", 0)

    def events(self, index: int, delta: TextDelta) -> bytes:
        begin = b""
        if self._content is None:
            self._content = ContentEvents()
            message = {**self._message([], TextDelta("", 0)), "usage": self._read()}
            begin = _encoded([{"type": "message_start", "message": message}])
        self._last = delta
        return begin + _encoded(self._content.read(delta))

    def end(self) -> bytes:
        ends = list(self._content.end()) if self._content is not None else []
        usage = self._usage()
        delta: Json = {"type": "message_delta", "delta": _reason(self._last), "usage": usage}
        return _encoded([*ends, delta, {"type": "message_stop"}])

    def failure(self, error: ApiError) -> bytes:
        return _encoded([error_body(error)])

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        (whole,) = choices
        return self._message(content_of(whole), whole)

    def _message(self, content: Sequence[Json], last: TextDelta) -> Json:
        return {
            "id": self._heading.id,
            "type": "message",
            "role": "assistant",
            "model": self._heading.model,
            "content": content,
            **_reason(last),
            "stop_details": None,
            "container": None,
            "usage": self._usage(),
        }

    def _read(self) -> Json:
        """Return the usage before the first token."""
        usage = self._heading.usage
        cached = usage.total().cached_tokens
        return {
            **_NONE,
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0,
        }

    def _usage(self) -> Json:
        usage = self._heading.usage
        thinking = {"thinking_tokens": usage.reasoning_tokens}
        tokens = {"output_tokens": usage.completion_tokens, "output_tokens_details": thinking}
        return {**self._read(), **tokens}


def _reason(last: TextDelta) -> Json:
    if last.finish == "stop" and last.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop}
    return {"stop_reason": _REASONS.get(last.finish), "stop_sequence": None}


def _encoded(events: Iterable[Json]) -> bytes:
    return b"".join(sent_event(event, str(event["type"])) for event in events)


def error_body(error: ApiError) -> dict[str, object]:
    """Return the body of an error, which is also the event of an error in a stream."""
    is_theirs = error.status < InvalidRequest.status + 100
    other = "invalid_request_error" if is_theirs else "api_error"
    message = error.message
    if isinstance(error, PromptTooLong):  # clients find both numbers, and shorten the prompt
        message = f"prompt is too long: {error.tokens} tokens > {error.context_tokens} maximum"
    kind = next((kind for of, kind in _TYPES.items() if isinstance(error, of)), other)
    details = {"error_code": error.error_code, "param": error.param}
    shown = {"type": kind, "message": message, "details": details}
    return {"type": "error", "error": shown}


SHAPE: Final = Shape(error_body, full=529)


def model_of(name: str, created: int, facts: Facts | None = None) -> Json:
    """Return a model. created: Unix time, in seconds. facts: None for a proxied model."""
    limits = ("max_input_tokens", "max_tokens") if facts else ()
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "lifecycle": "active",
        **{limit: facts.context_tokens for limit in limits if facts},
    }


def page_of(models: Sequence[Json]) -> Json:
    """Return all models as the only page of a list."""
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]}
    return {"data": models, "has_more": False, **ends}
