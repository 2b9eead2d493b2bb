"""What clients may send. Every field is checked here or in `parameters`; none is ignored.

`null` means that a parameter was not given, as OpenAI has it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""Held-back text is searched for every stop string at every token: keep them short."""

TokenIds = tuple[int, ...]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_prompts(value: object) -> tuple[str | TokenIds, ...]:
    """A string, strings, token ids, or arrays of token ids: always read as several prompts."""
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError("expected a string, token ids, or a non-empty array of either")
    return tuple(_as_prompt(item) for item in value)


def _as_prompt(value: object) -> str | TokenIds:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and _is_tokens(value):
        return tuple(value)
    raise ValueError("each prompt must be a string or a non-empty array of token ids")


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}


class StreamOptions(_Strict):
    include_usage: Flag = False
    include_obfuscation: Flag = False
    """Accepted; nothing is ever padded."""


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[tuple[TextPart, ...], BeforeValidator(_as_parts)]

    @property
    def text(self) -> str:
        """The parts, one below the other."""
        return "\n".join(part.text for part in self.content)


class GenerationRequest(_Strict):
    """What both surfaces share. Others land in `model_extra`, for `parameters.extras`."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1)]
    n: Annotated[Count, Field(ge=1, le=8)] = 1
    stream: Flag = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    stop: Annotated[tuple[Stop, ...], BeforeValidator(_as_list), Field(max_length=4)] = ()
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Count, Field(ge=-1, lt=2**31)] = 0
    """0 and -1 keep all."""

    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Annotated[Count, Field(ge=-(2**63), lt=2**63)] | None = None

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if info.data.get("stream") is False:
            raise ValueError("stream_options needs stream: true")
        return value


class ChatRequest(GenerationRequest):
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None

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


class CompletionRequest(GenerationRequest):
    prompt: Annotated[tuple[str | TokenIds, ...], BeforeValidator(_as_prompts)]
    logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs
