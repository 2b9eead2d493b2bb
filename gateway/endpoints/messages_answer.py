"""A request for a message gets its Answer here, which writes messages, events, errors and
models in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final

from gateway.endpoints.answer import Answer, Heading, Json, sent_event
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.messages import MessagesRequest
from gateway.endpoints.messages_content import ContentEvents, content_of
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
from gateway.ports import Facts

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
