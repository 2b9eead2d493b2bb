"""Writes the answer of POST /v1/responses: a response, or the events by which it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from gateway.endpoints.answer import Entries, Heading, sent_event
from gateway.endpoints.background import LastingAnswer
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.chat_answer import logprobs_of
from gateway.endpoints.recording import MARK
from gateway.endpoints.responses import ENCRYPTED, ResponsesRequest
from gateway.endpoints.responses_output import PREFIX, Event, Json, Output
from gateway.endpoints.usage_fields import extensions_of
from gateway.errors import ApiError, InvalidRequest, Overloaded
from gateway.output.detokenise import Finish, TextDelta
from gateway.request_context import Usage

Keep = Callable[[Json], None]

_REPEATED: Final = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
    "previous_response_id", "prompt_cache_key", "safety_identifier", "service_tier", "store",
    "top_logprobs", "truncation", "user",
)  # fmt: skip
"""A response repeats these fields of its request."""

_ADJUSTED: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


class ResponseAnswer(LastingAnswer):
    def __init__(
        self,
        request: ResponsesRequest,
        repeated: bytes,
        called: Mapping[str, Json],
        keep: Keep | None,
        heading: Heading,
    ) -> None:
        """repeated: see `repeated_of`."""
        self._usage = heading.usage
        self._created = heading.created
        self._keep = keep
        self.repeated = repeated
        self._response = _beginning(request, heading)
        self._response[_REPEATED[0]] = msgspec.Raw(MARK if request.background else repeated)
        seals = ENCRYPTED in request.include
        self._output = Output(heading.id.removeprefix(PREFIX), called, seals=seals)
        self._finish: Finish | None = None
        self._events = 0
        self._has_begun = False

    def opening(self) -> bytes:
        """Return the events that report a response without its first token."""
        self._response["status"] = "queued"
        queued: Json = {"response": self._response}
        return self._encoded([("response.created", queued), ("response.queued", queued)])

    @property
    def id(self) -> str:
        return str(self._response["id"])

    @property
    def state(self) -> bytes:
        shown = {"output": self._output.so_far(), _REPEATED[0]: msgspec.Raw(self.repeated)}
        return msgspec.json.encode({**self._response, **shown})

    def waiting(self) -> bytes:
        """Return an event: Codex gives up on a stream without events for five minutes."""
        return self._begun() or self._encoded([("keepalive", {})])

    def events(self, index: int, delta: TextDelta) -> bytes:
        self._finish = delta.finish
        return self._begun() + self._encoded(self._output.read(delta))

    def end(self) -> bytes:
        response = self._ended()
        return self._encoded([(f"response.{response['status']}", {"response": response})])

    def failure(self, error: ApiError) -> bytes:
        begun = self._begun()
        failed = {"status": "failed", "error": _error(error), "output": self._output.items}
        self._response = {**self._response, **failed}
        return begun + self._encoded([("response.failed", {"response": self._response})])

    def cancelled(self) -> bytes:
        """Return the end of the open item, and the event that ends most likely what reads the
        stream: OpenAI's API has none for this."""
        ended = self._encoded(self._output.end("incomplete"))
        fields = {"status": "cancelled", "output": self._output.items}
        self._response = {**self._response, **fields}
        return ended + self._encoded([("response.incomplete", {"response": self._response})])

    def write(self, entries: Entries) -> Sequence[msgspec.Raw]:
        return logprobs_of(entries)

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        (choice,) = choices
        self._finish = choice.finish
        for _ in self._output.read(choice):
            pass
        return self._ended()

    def _begun(self) -> bytes:
        """Return the events that begin a stream, if they were not sent before."""
        if self._has_begun:
            return b""
        self._has_begun, self._response["status"] = True, "in_progress"
        begun: Json = {"response": self._response}
        created = [] if self._events else [("response.created", begun)]
        return self._encoded([*created, ("response.in_progress", begun)])

    def _ended(self) -> Json:
        cut = self._finish == "length"
        self._response = response = {
            **self._response,
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else self._created + int(self._usage.times.elapsed_s),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output.items,
            "usage": _usage(self._usage),
            **extensions_of(self._usage),
        }
        if self._keep is not None:
            self._keep(response)
        return response

    def _encoded(self, events: Iterable[Event]) -> bytes:
        encoded = []
        for name, fields in events:
            event = {"type": name, "sequence_number": self._events, **fields}
            self._events += 1
            encoded.append(sent_event(event, name))
        return b"".join(encoded)


def repeated_of(request: ResponsesRequest, chat: ChatRequest) -> bytes:
    """Return what a response repeats of its request, which may be megabytes, as JSON: the
    value of the first field of _REPEATED, and all further fields after it."""
    text: Json = {"format": request.text.format}
    if request.text.verbosity is not None:
        text["verbosity"] = request.text.verbosity
    fields: Json = {
        **{name: getattr(request, name) for name in _REPEATED},
        **{name: getattr(chat, name) for name in _ADJUSTED},
        "reasoning": {"effort": request.reasoning.effort, "summary": request.reasoning.summary},
        "text": text,
        "tools": [tool.shown() for tool in request.tools],
        "tool_choice": request.tool_choice or "auto",
    }
    return msgspec.json.encode(fields).removeprefix(b'{"%b":' % _REPEATED[0].encode())[:-1]


def _beginning(request: ResponsesRequest, heading: Heading) -> Json:
    """Return the response's own fields in its state before the first token."""
    return {
        "id": heading.id,
        "object": "response",
        "created_at": heading.created,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": heading.model,
        "output": [],
        "usage": None,
        "background": request.background,
        "system_fingerprint": heading.fingerprint,
    }


def _usage(usage: Usage) -> Json:
    cached = usage.total().cached_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error(error: ApiError) -> Json:
    """Return the error of a response, for which OpenAI's API has few codes."""
    codes = {InvalidRequest.status: "invalid_prompt", Overloaded.status: "rate_limit_exceeded"}
    return {"code": codes.get(error.status, "server_error"), "message": error.message}
