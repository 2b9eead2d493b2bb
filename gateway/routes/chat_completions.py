"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.errors import InvalidRequest
from gateway.ports import Tokenizer
from gateway.routes.answer import Json
from gateway.routes.request import Flag, GenerationRequest, Integer, StrictModel, TokenIds


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class ChatMessage(StrictModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[tuple[TextPart, ...], BeforeValidator(_as_parts)]

    def message(self) -> Json:
        """Join the parts by newlines. "developer" is OpenAI's newer name for "system"."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_the_only_limit(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("max_tokens") not in (None, value):
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("logprobs") is False:
            raise ValueError("top_logprobs needs logprobs: true")
        return value

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        messages = [message.message() for message in self.messages]
        try:
            return (tuple(tokenizer.chat(messages)),)
        except ValueError as error:
            raise InvalidRequest(f"messages: {error}", param="messages") from error
