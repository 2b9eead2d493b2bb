"""Writes the answer of POST /v1/chat/completions."""

from __future__ import annotations

from functools import partial
from itertools import repeat

from picospec.gateway.doors.chat.request import ChatRequest
from picospec.gateway.doors.chunks import ChunkAnswer
from picospec.gateway.doors.door import DoorRequest, Entries, Json, finite
from picospec.gateway.output.detokenise import Finish, LogprobEntry, TextDelta
from picospec.gateway.output.message import CallPiece, CallStart, whole_calls
from picospec.gateway.watching import Report, Spans


def convert(body: ChatRequest) -> DoorRequest:
    """Return what a chat asks for: the chat itself."""
    return DoorRequest(body, "chatcmpl-", partial(ChatAnswer, body))


class ChatAnswer(ChunkAnswer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

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
        calls = delta.parsed.calls
        for piece, spans in zip(calls, report.calls or repeat(()), strict=False):
            call = self._chunk({"tool_calls": [_piece(piece)]}, None, None)
            chunks.append((call, spans))
        return chunks

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._chunk({"content": text}, self._logprobs(entries), None)

    def last_chunk(self, finish: Finish) -> Json:
        return self._chunk({}, None, finish)

    def choice(self, whole: TextDelta) -> Json:
        return {
            "message": _message(whole),
            "logprobs": self._logprobs(whole.entries),
            "finish_reason": whole.finish,
        }

    def _chunk(self, delta: Json, logprobs: Json | None, finish: Finish | None) -> Json:
        return {"delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, entries: Entries) -> Json | None:
        if not self.wants_logprobs:
            return None
        return {"content": logprobs_of(entries), "refusal": None}


def _message(whole: TextDelta) -> Json:
    """Return the message; fields for reasoning and calls are present only if there are any."""
    message: Json = {"role": "assistant", "content": whole.text, "refusal": None}
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


def logprobs_of(entries: Entries) -> list[Json]:
    """Return log-probabilities in OpenAI's form."""
    return [_entry(entry) for entry in entries]


def _entry(entry: LogprobEntry) -> Json:
    top = [_token(piece, logprob) for piece, logprob in entry.top]
    return {**_token(entry.piece, entry.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float) -> Json:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(piece)}
