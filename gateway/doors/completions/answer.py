"""Writes the answer of POST /v1/completions."""

from __future__ import annotations

from functools import partial

from picospec.gateway.doors.chunks import ChunkAnswer
from picospec.gateway.doors.completions.request import CompletionRequest
from picospec.gateway.doors.door import DoorRequest, Entries, Json, finite
from picospec.gateway.output.detokenise import Finish, LogprobEntry, TextDelta


def convert(body: CompletionRequest) -> DoorRequest:
    """Return what a completion asks for: the completion itself."""
    return DoorRequest(body, "cmpl-", partial(CompletionAnswer, body))


class CompletionAnswer(ChunkAnswer):
    object = "text_completion"
    chunk_object = "text_completion"

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._choice(text, entries, None)

    def last_chunk(self, finish: Finish) -> Json:
        return {"text": "", "logprobs": None, "finish_reason": finish}

    def choice(self, whole: TextDelta) -> Json:
        return self._choice(whole.text, whole.entries, whole.finish)

    def _choice(self, text: str, entries: Entries, finish: Finish | None) -> Json:
        logprobs = _logprobs(entries) if self.wants_logprobs else None
        return {"text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(entries: Entries) -> Json:
    return {
        "tokens": [_name(entry.piece) for entry in entries],
        "token_logprobs": [finite(entry.logprob) for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def _top(entry: LogprobEntry) -> Json | None:
    """Return the most likely tokens and the generated one; None if none were requested."""
    if not entry.top:
        return None
    named: Json = {}
    for piece, logprob in (*entry.top, (entry.piece, entry.logprob)):
        named.setdefault(_name(piece), finite(logprob))
    return named


def _name(piece: bytes) -> str:
    """Return a token's text or, if it is a part of a character, OpenAI's bytes:\\xe2\\x82."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
