"""Parses the body of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, ClassVar

from msgspec.structs import replace
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from picospec.gateway.doors.request import GenerationRequest, TokenIds
from picospec.gateway.errors import InvalidRequest
from picospec.gateway.hosting.settings import MAX_CHOICES
from picospec.gateway.output.choice_stream import ChoiceStream
from picospec.gateway.schemas.base import Flag, Integer
from picospec.gateway.tokenizer import Tokenizer


def _as_prompts(value: object) -> tuple[str | TokenIds, ...]:
    """Return a string, strings, token ids, or arrays of token ids as a tuple of prompts."""
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError("expected a string, token ids, or a non-empty array of either")
    if len(value) > MAX_CHOICES:
        raise ValueError(f"expected at most {MAX_CHOICES} prompts")
    return tuple(_as_prompt(item) for item in value)


def _as_prompt(value: object) -> str | TokenIds:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and _is_tokens(value):
        return tuple(value)
    raise ValueError("each prompt must be a string or a non-empty array of token ids")


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


Prompts = Annotated[
    tuple[str | TokenIds, ...],
    BeforeValidator(
        _as_prompts, json_schema_input_type=str | TokenIds | tuple[str | TokenIds, ...]
    ),
]


def text_of(prompt: str | Sequence[int], tokenizer: Tokenizer) -> str:
    """Return a prompt as a text with special tokens spelt out."""
    if isinstance(prompt, str):
        return prompt
    return b"".join(tokenizer.piece(token, True) for token in prompt).decode("utf-8", "replace")


async def _echo(prompt: str, stream: ChoiceStream) -> ChoiceStream:
    """Yield the choice with the prompt before its first text."""
    async with aclosing(stream):
        async for index, delta in stream:
            report = delta.report and delta.report.after_prompt(len(prompt))
            yield index, replace(delta, text=prompt + delta.text, report=report)
            prompt = ""


class CompletionRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "prompt"
    default_tokens: ClassVar[int | None] = 16  # OpenAI's default

    prompt: Prompts
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    suffix: str = ""
    """This text comes after the completion."""

    echo: Flag = False
    add_special_tokens: Flag = True
    """vLLM has this field: the tokens that begin every prompt are added to this one."""

    @field_validator("suffix")
    @classmethod
    def _goes_with_text(cls, value: str, info: ValidationInfo) -> str:
        if value and not all(isinstance(each, str) for each in info.data.get("prompt", ())):
            raise ValueError("it needs a prompt that is a text")
        return value

    @field_validator("echo")
    @classmethod
    def _has_no_logprobs(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("logprobs") is not None:
            raise ValueError("there are no log-probabilities of a prompt; leave out logprobs")
        return value

    @property
    def prompt_count(self) -> int:
        return len(self.prompt)

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        try:
            return tuple(tuple(self._tokens(prompt, tokenizer)) for prompt in self.prompt)
        except ValueError as error:
            raise InvalidRequest.of("suffix", error) from error

    def _tokens(self, prompt: str | TokenIds, tokenizer: Tokenizer) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.suffix:
            return tokenizer.infill(prompt, self.suffix)
        return tokenizer.encode(prompt, begin=self.add_special_tokens)

    def shown(
        self, streams: Sequence[ChoiceStream], tokenizer: Tokenizer
    ) -> list[ChoiceStream]:
        if not self.echo:
            return list(streams)
        prompts = [text_of(prompt, tokenizer) for prompt in self.prompt]
        return [_echo(prompts[i // self.n], stream) for i, stream in enumerate(streams)]
