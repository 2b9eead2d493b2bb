"""The answer of POST /v1/chat/completions."""

from __future__ import annotations

from gateway.detokenise import LogprobEntry
from gateway.ports import FinishReason
from gateway.routes.answer import Answer, Entries, Json, finite


class ChatAnswer(Answer):
    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first_chunk(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""}, None, None)

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._chunk({"content": text}, self._logprobs(entries), None)

    def last_chunk(self, finish: FinishReason) -> Json:
        return self._chunk({}, None, finish)

    def choice(self, text: str, entries: Entries, finish: FinishReason | None) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = self._logprobs(entries)
        return {"message": message, "logprobs": logprobs, "finish_reason": finish}

    def _chunk(self, delta: Json, logprobs: Json | None, finish: FinishReason | None) -> Json:
        return {"delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, entries: Entries) -> Json | None:
        if not self.wants_logprobs:
            return None
        return {"content": [_entry(entry) for entry in entries], "refusal": None}


def _entry(entry: LogprobEntry) -> Json:
    top = [_token(piece, logprob) for piece, logprob in entry.top]
    return {**_token(entry.piece, entry.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float) -> Json:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(piece)}
