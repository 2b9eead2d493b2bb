"""Requests of Ollama's chat and generate are converted, and their answers and errors are
written as JSON or its lines.

A call is shown once it is whole, because its arguments are an object here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import msgspec
from pydantic_core import from_json
from starlette.responses import Response

from gateway.endpoints.answer import Answer, Entries, Heading, Json
from gateway.endpoints.chat_answer import logprobs_of
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.ollama import OllamaRequest
from gateway.errors import ApiError, Shape
from gateway.http import json_response
from gateway.output.detokenise import TextDelta
from gateway.output.message import CallPiece, CallStart

_NS: Final = 10**9


def error_body(error: ApiError) -> Json:
    """Return the body of an error, which is also the line of an error in a stream."""
    return {"error": error.message}


SHAPE: Final = Shape(error_body)


def convert(answer: type[OllamaAnswer], body: OllamaRequest) -> EndpointRequest:
    """Return what a request asks for. answer: class that writes its answer."""
    make_answer = partial(answer, body.logprobs)
    if body.is_empty:
        unused = CompletionRequest(model=body.name, prompt="")
        ignored = tuple(body.model_extra or ())
        return EndpointRequest(
            unused, answer.id_prefix, make_answer, ignored, body.names, answer.loaded
        )
    request = body.request()
    return EndpointRequest(
        request, answer.id_prefix, make_answer, request.unserved_options, body.names
    )


class OllamaAnswer(Answer):
    """Writes an object for each piece of text, and a last one with the counts."""

    media_type = "application/x-ndjson"
    id_prefix: str

    def __init__(self, wants_logprobs: bool, heading: Heading) -> None:
        self._wants_logprobs = wants_logprobs
        self._heading = heading
        self._call: CallStart | None = None  # the call that is not whole
        self._arguments: list[str] = []

    @classmethod
    @abstractmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        """Return the fields that show a part of an answer."""

    @classmethod
    def loaded(cls, model: str) -> Response:
        """Return the answer to an empty request, which says that the model is loaded."""
        head = {"model": model, "created_at": _now()}
        done = {"done": True, "done_reason": "load"}
        return json_response({**head, **cls.shown("", "", ()), **done})

    def events(self, index: int, delta: TextDelta) -> bytes:
        shown = self._shown(delta)
        lines = [{**self._head(), **shown, "done": False}] if shown else []
        if delta.finish is not None:
            lines.append({**self._head(), **self.shown("", "", ()), **self._counted(delta)})
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    def failure(self, error: ApiError) -> bytes:
        return msgspec.json.encode(error_body(error)) + b"\n"

    def write(self, entries: Entries) -> Sequence[msgspec.Raw]:
        return logprobs_of(entries)

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        (choice,) = choices
        shown = self._shown(choice) or self.shown("", "", ())
        return {**self._head(), **shown, **self._counted(choice)}

    def _head(self) -> Json:
        return {"model": self._heading.model, "created_at": _now()}

    def _shown(self, delta: TextDelta) -> Json:
        """Return the fields that show a delta; none if the delta shows nothing."""
        pieces = delta.parsed.calls if delta.parsed else ()
        thinking = delta.parsed.reasoning if delta.parsed else ""
        calls, rest = self._read_calls(pieces, ended=delta.finish is not None)
        logprobs = delta.written or logprobs_of(delta.entries)
        if not (delta.text or rest or thinking or calls or logprobs):
            return {}
        shown = self.shown(delta.text + rest, thinking, calls)
        if self._wants_logprobs:
            shown["logprobs"] = logprobs
        return shown

    def _read_calls(
        self, pieces: Sequence[CallPiece], *, ended: bool
    ) -> tuple[list[Json], str]:
        """Return the calls that these pieces complete, and the arguments that are not a JSON
        object, as in an answer that was cut: these are shown as text."""
        calls, rest = list[Json](), ""
        for piece in pieces:
            if isinstance(piece, CallStart):
                rest += self._end_call(calls)
                self._call = piece
            else:
                self._arguments.append(piece.text)
        if ended:
            rest += self._end_call(calls)
        return calls, rest

    def _end_call(self, calls: list[Json]) -> str:
        """Add the open call, if there is one, or return its arguments if they are no object."""
        call, text = self._call, "".join(self._arguments)
        self._call, self._arguments = None, []
        if call is None or (arguments := _object(text)) is None:
            return text
        function = {"index": call.index, "name": call.name, "arguments": arguments}
        calls.append({"id": call.id, "function": function})
        return ""

    def _counted(self, delta: TextDelta) -> Json:
        usage = self._heading.usage
        times = usage.times
        total, first = int(times.elapsed_s * _NS), int((times.first_s or 0) * _NS)
        return {
            "done": True,
            "done_reason": "length" if delta.finish == "length" else "stop",
            "total_duration": total,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": first,
            "eval_count": usage.completion_tokens,
            "eval_duration": total - first,
        }


class OllamaChatAnswer(OllamaAnswer):
    id_prefix = "chatcmpl-"
    keep_alive = b'{"message":{"role":"assistant","content":""},"done":false}\n'

    @classmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        message: Json = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class TextAnswer(OllamaAnswer):
    id_prefix = "cmpl-"
    keep_alive = b'{"response":"","done":false}\n'

    @classmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


def _object(text: str) -> Json | None:
    try:
        value = from_json(text or "{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat()
