"""The answer of POST /v1/messages, which is a message, and the events of its stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from picospec.gateway.doors.answer import Answer, Heading, Json
from picospec.gateway.doors.door import Asked
from picospec.gateway.doors.event_stream import sent_event
from picospec.gateway.doors.messages.content import ContentEvents, content_of
from picospec.gateway.doors.messages.errors import error_body
from picospec.gateway.doors.messages.request import MessagesRequest
from picospec.gateway.errors import ApiError
from picospec.gateway.output.detokenise import Finish, TextDelta

_REASONS: Final[dict[Finish | None, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


def asked(body: MessagesRequest) -> Asked:
    """Return the chat that a request asks for. Raises InvalidRequest."""
    chat = body.chat()
    return Asked(chat, "msg_", MessageAnswer, (*body.ignored(), *chat.untold), body.names())


_NONE: Final = dict.fromkeys(
    ("cache_creation", "server_tool_use", "service_tier", "inference_geo")
)
"""Anthropic's `usage` has these, and they may be null."""


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

    def whole(self, choices: Sequence[TextDelta]) -> Json:
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
        account = self._heading.account
        cached = account.total().cached_tokens
        return {
            **_NONE,
            "input_tokens": account.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0,
        }

    def _usage(self) -> Json:
        account = self._heading.account
        thinking = {"thinking_tokens": account.reasoning_tokens}
        tokens = {"output_tokens": account.completion_tokens, "output_tokens_details": thinking}
        return {**self._read(), **tokens}


def _reason(last: TextDelta) -> Json:
    if last.finish == "stop" and last.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop}
    return {"stop_reason": _REASONS.get(last.finish), "stop_sequence": None}


def _encoded(events: Iterable[Json]) -> bytes:
    return b"".join(sent_event(event, str(event["type"])) for event in events)
