"""Writes the answer of POST /v1/responses: a response, or the events by which it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.door import Answer, Heading, sent_event
from picospec.gateway.doors.responses.output import PREFIX, Event, Output
from picospec.gateway.doors.responses.request import ENCRYPTED, ResponsesRequest
from picospec.gateway.errors import ApiError, InvalidRequest, Overloaded
from picospec.gateway.output.detokenise import Finish, TextDelta

Json = dict[str, object]
Keep = Callable[[Json], None]
"""Stores a complete response."""

_REPEATED: Final = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
    "previous_response_id", "prompt_cache_key", "safety_identifier", "service_tier", "store",
    "top_logprobs", "truncation", "user",
)  # fmt: skip
"""A response repeats these fields of its request."""

_ADJUSTED: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


class ResponseAnswer(Answer):
    def __init__(
        self,
        request: ResponsesRequest,
        chat: ChatRequest,
        called: Mapping[str, Json],
        keep: Keep | None,
        heading: Heading,
    ) -> None:
        self._account = heading.account
        self._created = heading.created
        self._keep = keep
        self._response = _beginning(request, chat, heading)
        seals = ENCRYPTED in request.include
        self._output = Output(heading.id.removeprefix(PREFIX), called, seals=seals)
        self._finish: Finish | None = None
        self._events = 0

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
        failed = {"status": "failed", "error": _error(error), "output": self._output.items}
        response = {**self._response, **failed}
        return self._begun() + self._encoded([("response.failed", {"response": response})])

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        (choice,) = choices
        self._finish = choice.finish
        for _ in self._output.read(choice):
            pass
        return self._ended()

    def _begun(self) -> bytes:
        """Return the events that begin a stream, if they were not sent before."""
        if self._events:
            return b""
        begun: Json = {"response": self._response}
        return self._encoded([("response.created", begun), ("response.in_progress", begun)])

    def _ended(self) -> Json:
        cut = self._finish == "length"
        response = {
            **self._response,
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else self._created + int(self._account.elapsed_s),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output.items,
            "usage": _usage(self._account.usage()),
            **self._account.extensions(),
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


def _beginning(request: ResponsesRequest, chat: ChatRequest, heading: Heading) -> Json:
    """Return the response in its state before the first token."""
    text: Json = {"format": request.text.format}
    if request.text.verbosity is not None:
        text["verbosity"] = request.text.verbosity
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
        "background": False,
        "system_fingerprint": heading.fingerprint,
        **{name: getattr(request, name) for name in _REPEATED},
        **{name: getattr(chat, name) for name in _ADJUSTED},
        "reasoning": {"effort": request.reasoning.effort, "summary": request.reasoning.summary},
        "text": text,
        "tools": [tool.shown() for tool in request.tools],
        "tool_choice": request.tool_choice or "auto",
    }


def _usage(chat: Mapping[str, Any]) -> Json:
    """Return a chat's `usage` with this API's names."""
    written = chat["completion_tokens_details"]
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {**chat["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": written["reasoning_tokens"]},
        "total_tokens": chat["total_tokens"],
    }


def _error(error: ApiError) -> Json:
    """Return the error of a response, for which OpenAI's API has few codes."""
    codes = {InvalidRequest.status: "invalid_prompt", Overloaded.status: "rate_limit_exceeded"}
    return {"code": codes.get(error.status, "server_error"), "message": error.message}
