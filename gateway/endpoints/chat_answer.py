"""Writes the answer of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.answer import Entries, Json, finite, sent_event
from gateway.endpoints.background import LastingAnswer, RunningAnswer
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.chunks import ChunkAnswer
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.generation import generate
from gateway.endpoints.recording import Recording, Replay
from gateway.endpoints.sending import EventStream
from gateway.endpoints.services import Services
from gateway.errors import ClientGone
from gateway.output.detokenise import Finish, LogprobEntry, TextDelta
from gateway.output.message import CallPiece, CallStart, whole_calls
from gateway.watching import Report, Spans


async def create(services: Services, request: Request) -> Response:
    """Answer a chat, which may outlive its connection."""
    return await generate(ChatRequest, partial(convert, keeps=services), services, request)


def convert(body: ChatRequest, keeps: Services | None = None) -> EndpointRequest:
    """Return what a chat asks for: the chat itself. keeps: has the stores of what outlives its
    connection; None if nothing does."""
    lasts = body.background and body.is_watched
    in_background = partial(_run, keeps) if lasts and keeps is not None else None
    ignored = ("background",) if body.background and in_background is None else ()
    return EndpointRequest(
        body, "chatcmpl-", partial(ChatAnswer, body), ignored, in_background=in_background
    )


def _run(services: Services, stream: EventStream) -> Response:
    """Run a chat apart from its connection, and stream it. Raises Overloaded."""
    answer = cast(ChatAnswer, stream.answer)  # as `convert` has it
    running = RunningAnswer(answer, stream, b"[]", events := Recording())
    services.stores.of(stream.context).begin(running)
    return Replay(events, 0, stream.keep_alive_s, stream.context)


class ChatAnswer(ChunkAnswer, LastingAnswer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    @property
    def id(self) -> str:
        return self._heading.id

    def opening(self) -> bytes:
        """Return a chunk without a choice, which has the id."""
        return sent_event(self._body([], chunk=True))

    def mark(self) -> bytes:
        """Return a comment that says when the events came, in milliseconds."""
        return b": %d\n" % (1000 * self._answer_usage.times.elapsed_s)

    def cancelled(self) -> bytes:
        return self.failure(ClientGone("the answer was cancelled"))

    @property
    def state(self) -> bytes:
        return msgspec.json.encode({"id": self.id, "object": self.object, "background": True})

    def first_chunk(self, delta: TextDelta) -> Json:
        """Return the chunk with the role; `content` is null if calls alone may follow."""
        content = "" if delta.parsed is None else None
        return self._chunk({"role": "assistant", "content": content}, None, None)

    def chunks(self, delta: TextDelta, report: Report) -> list[tuple[Json, Spans]]:
        chunks = super().chunks(delta, report)
        if delta.parsed is None:
            return chunks
        if thoughts := delta.parsed.reasoning:
            thought = self._chunk({"reasoning_content": thoughts}, None, None)
            chunks.insert(0, (thought, report.reasoning))
        for piece in delta.parsed.calls:
            chunks.append((self._chunk({"tool_calls": [_piece(piece)]}, None, None), ()))
        return chunks

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._chunk({"content": text}, self._logprobs(self.write(entries)), None)

    def last_chunk(self, finish: Finish) -> Json:
        return self._chunk({}, None, finish)

    def choice(self, whole: TextDelta) -> Json:
        return {
            "message": _message(whole),
            "logprobs": self._logprobs(whole.written),
            "finish_reason": whole.finish,
        }

    def _chunk(self, delta: Json, logprobs: Json | None, finish: Finish | None) -> Json:
        return {"delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def write(self, entries: Entries) -> Sequence[msgspec.Raw]:
        return logprobs_of(entries)

    def _logprobs(self, written: Sequence[Any]) -> Json | None:
        return {"content": written, "refusal": None} if self.wants_logprobs else None


def _message(whole: TextDelta) -> Json:
    """Return the message; fields for reasoning and calls are present only if there are any."""
    message: Json = {"role": "assistant", "content": whole.text, "refusal": None}
    message["annotations"] = []  # these would be citations of a search
    if whole.parsed is not None and whole.parsed.reasoning:
        message["reasoning_content"] = whole.parsed.reasoning
    if whole.parsed is not None and whole.parsed.calls:
        message["content"] = whole.text or None
        message["tool_calls"] = [_call(*call) for call in whole_calls(whole.parsed.calls)]
    return message


def _piece(piece: CallPiece) -> Json:
    """Return a piece of a call for a stream; clients join `arguments` by index."""
    if isinstance(piece, CallStart):
        return {"index": piece.index, **_call(piece, "")}
    if piece.custom:
        return {"index": piece.index, "custom": {"input": piece.text}}
    return {"index": piece.index, "function": {"arguments": piece.text}}


def _call(start: CallStart, arguments: str) -> Json:
    if start.custom:
        custom = {"name": start.name, "input": arguments}
        return {"id": start.id, "type": "custom", "custom": custom}
    function = {"name": start.name, "arguments": arguments}
    return {"id": start.id, "type": "function", "function": function}


def logprobs_of(entries: Entries) -> list[msgspec.Raw]:
    """Return log-probabilities in OpenAI's form, each encoded."""
    return [msgspec.Raw(msgspec.json.encode(_entry(entry))) for entry in entries]


def _entry(entry: LogprobEntry) -> Json:
    top = [_token(piece, logprob) for piece, logprob in entry.top]
    return {**_token(entry.piece, entry.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> Json:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(piece)}
