"""Parses the bodies of POST /completion and POST /infill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, ClassVar, Final

from msgspec.structs import replace
from pydantic import AliasChoices, BeforeValidator, Field, field_validator

from gateway.answer_fields import NEUTRAL, is_neutral
from gateway.endpoints.completions import Prompts
from gateway.endpoints.line_limits import LineLimits, limited
from gateway.endpoints.request import GenerationRequest, TokenIds, minus_one_is_none
from gateway.errors import InvalidRequest
from gateway.output.stream import ChoiceStream
from gateway.ports import GatewayTokenizer
from gateway.schema import FIRST_ERROR, Integer, RequestModel, unsupported

INFILL_SAMPLER: Final = "infill"
"""llama.cpp's sampler of this name chooses among likely tokens that begin alike. It is ignored
rather than rejected: editors name it in every request, and would get no answer at all."""

MAX_FIELDS: Final = 64
"""A list has at most this many names; llama-server's answers have no more fields."""


class NativeRequest(GenerationRequest):
    """Parses the fields of llama-server that both bodies have."""

    model: Annotated[str | None, BeforeValidator(lambda value: value or None)] = None
    """Editors send an empty name by default."""

    max_tokens: Annotated[
        Annotated[Integer, Field(ge=0)] | None, BeforeValidator(minus_one_is_none)
    ] = Field(None, validation_alias=AliasChoices("n_predict", "max_tokens"))
    """At 0 the answer is empty; the prompt is read, so that a later prompt with the same
    beginning is read sooner."""

    n_indent: Annotated[Integer, Field(ge=0)] = 0
    """A line with fewer spaces or tabs before it ends the answer."""

    t_max_predict_ms: Annotated[Integer, Field(ge=-1)] = -1
    """The answer ends after this many milliseconds, if it has a whole line."""

    response_fields: Annotated[tuple[str, ...], Field(max_length=MAX_FIELDS)] = ()
    """The answer has only the fields at these paths, such as "timings/prompt_n"."""

    @property
    def wanted_tokens(self) -> int | None:
        return 1 if self.max_tokens == 0 else super().wanted_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return None

    def shown(
        self,
        streams: Sequence[ChoiceStream],
        tokenizer: GatewayTokenizer,
        prompts: Sequence[TokenIds],
    ) -> list[ChoiceStream]:
        if self.max_tokens == 0:
            return [_hidden(stream) for stream in streams]
        if not self.n_indent and self.t_max_predict_ms <= 0:
            return list(streams)
        max_s = max(self.t_max_predict_ms, 0) / 1000
        limits = (LineLimits(indent=self.n_indent, max_s=max_s) for _ in streams)
        return [limited(*each, time.monotonic) for each in zip(streams, limits, strict=True)]


async def _hidden(stream: ChoiceStream) -> ChoiceStream:
    async with aclosing(stream):
        async for index, delta in stream:
            yield index, replace(delta, text="")


class NativeCompletionRequest(NativeRequest):
    prompt_field: ClassVar[str] = "prompt"

    prompt: Prompts

    @property
    def prompt_count(self) -> int:
        return len(self.prompt)

    def tokenise(self, tokenizer: GatewayTokenizer) -> tuple[TokenIds, ...]:
        return tuple(
            tuple(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
            for prompt in self.prompt
        )


class Snippet(RequestModel):
    """A snippet is a part of another file."""

    text: str
    filename: str = "snippet"


class InfillRequest(NativeRequest):
    prompt_field: ClassVar[str] = "input_prefix"

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[tuple[Snippet, ...], FIRST_ERROR] = ()
    """The model is shown as many of the last snippets as leave room for the answer."""

    prompt: str = ""
    """This text is between the prefix and the cursor."""

    samplers: Annotated[tuple[str, ...], Field(max_length=MAX_FIELDS)] | str = ()

    @field_validator("samplers")
    @classmethod
    def _are_the_usual(cls, value: Sequence[str]) -> Sequence[str]:
        usual = is_neutral([*value] if isinstance(value, tuple) else value, NEUTRAL["samplers"])
        if value and INFILL_SAMPLER not in value and not usual:
            unsupported("only the usual samplers, or a list with infill, are supported")
        return value

    def tokenise(self, tokenizer: GatewayTokenizer) -> tuple[TokenIds, ...]:
        snippets = [{"filename": each.filename, "text": each.text} for each in self.input_extra]
        try:
            prefix = self.input_prefix + self.prompt
            return (tuple(tokenizer.infill(prefix, self.input_suffix, snippets)),)
        except ValueError as error:
            raise InvalidRequest.of("input_suffix", error) from error

    def unknown_inside(self) -> list[str]:
        unserved = ["samplers"] if INFILL_SAMPLER in self.samplers else []
        return [*super().unknown_inside(), *unserved]
