"""The body and the answer of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.detokenise import LogprobEntry
from gateway.errors import InvalidRequest
from gateway.ports import FinishReason, Tokenizer
from gateway.routes.answer import Answer, Entries, Json, finite
from gateway.routes.request import GenerationRequest, TokenIds
from gateway.schemas.base import Flag, Integer, RequestModel


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class ChatMessage(RequestModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[tuple[TextPart, ...], BeforeValidator(_as_parts)]

    def message(self) -> Json:
        """Join the parts by newlines. "developer" is OpenAI's newer name for "system"."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    logprobs: Flag = False
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("logprobs") is False:
            raise ValueError("top_logprobs needs logprobs: true")
        return value

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        messages = [message.message() for message in self.messages]
        try:
            return (tuple(tokenizer.chat(messages)),)
        except ValueError as error:
            raise InvalidRequest(f"messages: {error}", param="messages") from error


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
