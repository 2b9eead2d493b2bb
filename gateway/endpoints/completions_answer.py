"""Writes the answer of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from gateway.endpoints.answer import Entries, Json, finite
from gateway.endpoints.chunks import ChunkAnswer
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.endpoint import EndpointRequest
from gateway.output.detokenise import Finish, LogprobEntry, TextDelta


def convert(body: CompletionRequest) -> EndpointRequest:
    """Return what a completion asks for: the completion itself."""
    return EndpointRequest(body, "cmpl-", partial(CompletionAnswer, body))


class CompletionAnswer(ChunkAnswer):
    object = "text_completion"
    chunk_object = "text_completion"

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._choice(text, self.write(entries), None)

    def last_chunk(self, finish: Finish) -> Json:
        return {"text": "", "logprobs": None, "finish_reason": finish}

    def choice(self, whole: TextDelta) -> Json:
        choice = self._choice(whole.text, whole.written, whole.finish)
        return choice if whole.scores is None else {**choice, "prompt_logprobs": whole.scores}

    def write(self, entries: Entries) -> list[Row]:
        return [_row(entry) for entry in entries]

    def _choice(self, text: str, rows: Sequence[Any], finish: Finish | None) -> Json:
        logprobs = None
        if self.wants_logprobs:
            columns = zip(*rows, strict=True) if rows else ((),) * len(_COLUMNS)
            logprobs = dict(zip(_COLUMNS, columns, strict=True))
        return {"text": text, "logprobs": logprobs, "finish_reason": finish}


_COLUMNS: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
Row = tuple[str, float | None, msgspec.Raw, int]
"""A token has these values in the columns of a choice's log-probabilities."""


def _row(entry: LogprobEntry) -> Row:
    top = msgspec.Raw(msgspec.json.encode(_top(entry)))
    return _name(entry.piece), finite(entry.logprob), top, entry.offset


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
