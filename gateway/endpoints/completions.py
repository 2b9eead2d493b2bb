"""Parses the body of POST /v1/completions."""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar, Final, TypeVar

from msgspec.structs import replace
from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator

from gateway.endpoints.answer import Json, finite
from gateway.endpoints.request import GenerationRequest, TokenIds, minus_one_is_none
from gateway.errors import InvalidRequest, Unsupported
from gateway.hosting.settings import MAX_CHOICES
from gateway.output.detokenise import LogprobEntry
from gateway.output.stream import ChoiceStream
from gateway.ports import Facts, GatewayTokenizer
from gateway.schema import Flag, Integer
from speculation.messages import TokenLogprob
from speculation.model_facts import MAX_TOP_LOGPROBS
from speculation.request_names import PROMPT_LOGPROBS

T = TypeVar("T")


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


MAX_ECHOED: Final = 8 << 20
"""All choices together repeat at most this many characters of prompts, which is eight times a
prompt of 250,000 tokens: nothing else runs while an answer is encoded."""

MAX_SCORED: Final = 1 << 16
"""All choices have at most this many log-probabilities of prompts' tokens, those of the
likeliest included: 32,768 tokens with one each, whose answer takes 80 ms to encode."""

Prompts = Annotated[
    tuple[str | TokenIds, ...],
    BeforeValidator(
        _as_prompts, json_schema_input_type=str | TokenIds | tuple[str | TokenIds, ...]
    ),
]


def text_of(prompt: str | Sequence[int], tokenizer: GatewayTokenizer) -> str:
    """Return a prompt as a text with special tokens spelt out."""
    if isinstance(prompt, str):
        return prompt
    return b"".join(tokenizer.piece(token, True) for token in prompt).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """The prompt of one choice, of which the answer shows more than is generated. text: as it
    is echoed."""

    tokens: TokenIds
    text: str
    tokenizer: GatewayTokenizer

    def entries(self, scores: Sequence[TokenLogprob], most: int) -> Iterator[LogprobEntry]:
        """Yield the tokens as those of an answer, with the `most` likeliest in place of each.
        scores: see Delta.prompt_logprobs."""
        whole = text_of(self.tokens, self.tokenizer)
        offset = len(self.text) - len(whole)  # the text lacks a token that begins every prompt
        decoder = getincrementaldecoder("utf-8")("replace")
        for token, score in zip(self.tokens, (None, *scores), strict=True):
            piece = self._piece(token)
            logprob, top = (score.logprob, score.top[:most]) if score else (None, ())
            named = tuple((self._piece(other), each) for other, each in top)
            yield LogprobEntry(piece, logprob, named, max(0, offset))
            offset += len(decoder.decode(piece))

    def written(self, scores: Sequence[TokenLogprob], most: int) -> Iterator[Json | None]:
        """Yield vLLM's `prompt_logprobs`; a rank is known of the likeliest tokens alone."""
        yield None
        for token, score in zip(self.tokens[1:], scores, strict=True):
            ranks = {each: rank for rank, (each, _) in enumerate(score.top, start=1)}
            logprobs = {token: score.logprob, **dict(score.top[:most])}
            yield {str(each): self._scored(each, logprobs[each], ranks) for each in logprobs}

    def _scored(self, token: int, logprob: float, ranks: Mapping[int, int]) -> Json:
        text = self._piece(token).decode("utf-8", "replace")
        return {"logprob": finite(logprob), "rank": ranks.get(token), "decoded_token": text}

    def _piece(self, token: int) -> bytes:
        return self.tokenizer.piece(token, True)


TURN: Final = 1024
"""After as many tokens of a prompt, which take some milliseconds, others have a turn."""


async def _in_turns(items: Iterator[T]) -> tuple[T, ...]:
    """Return the items; others have their turn between."""
    collection: list[T] = []
    while some := [*islice(items, TURN)]:
        collection += some
        await asyncio.sleep(0)
    return tuple(collection)


async def _with_prompt(
    body: CompletionRequest, prompt: EchoedPrompt, stream: ChoiceStream
) -> ChoiceStream:
    """Yield the choice with what it shows of its prompt, which its first delta has."""
    echoed, begun = prompt.text if body.echo else "", False
    async with aclosing(stream):
        async for index, delta in stream:
            entries = tuple(entry.after(len(echoed)) for entry in delta.entries)
            shown, prompt_logprobs = replace(delta, entries=entries), delta.prompt_logprobs
            if not begun:
                report = delta.report and delta.report.after_prompt(len(echoed))
                shown = replace(shown, text=echoed + delta.text, report=report)
                if body.echo and body.logprobs is not None:
                    own = await _in_turns(prompt.entries(prompt_logprobs, body.logprobs))
                    shown = replace(shown, entries=own + entries)
                if body.prompt_logprobs is not None:
                    scores = await _in_turns(
                        prompt.written(prompt_logprobs, body.prompt_logprobs)
                    )
                    shown = replace(shown, scores=scores)
            begun = True
            yield index, shown


class CompletionRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "prompt"
    default_tokens: ClassVar[int | None] = 16  # OpenAI's default

    prompt: Prompts
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: str = ""
    """This text comes after the completion."""

    echo: Flag = False
    prompt_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """vLLM has this field: each choice has log-probabilities of its prompt's tokens."""

    max_tokens: Annotated[
        Annotated[Integer, Field(ge=0)] | None,
        BeforeValidator(
            minus_one_is_none, json_schema_input_type=Annotated[int, Field(ge=-1)] | None
        ),
    ] = Field(None, validation_alias=AliasChoices("max_tokens", "n_predict"))
    """At 0 the prompt alone is echoed, as in OpenAI's API."""

    add_special_tokens: Flag = True
    """vLLM has this field: the tokens that begin every prompt are added to this one."""

    @field_validator("suffix")
    @classmethod
    def _goes_with_text(cls, value: str, info: ValidationInfo) -> str:
        if value and not all(isinstance(each, str) for each in info.data.get("prompt", ())):
            raise ValueError("it needs a prompt that is a text")
        return value

    @property
    def prompt_count(self) -> int:
        return len(self.prompt)

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        echoed = self.logprobs if self.echo else None
        unless_generated = 0 if self.max_tokens == 0 else None
        wanted = (self.prompt_logprobs, echoed, unless_generated)
        return max((most for most in wanted if most is not None), default=None)

    @property
    def scored_by(self) -> str:
        if self.wanted_prompt_logprobs is None:
            return ""
        return "echo" if self.prompt_logprobs is None else "prompt_logprobs"

    def check_served(self, facts: Facts) -> None:
        """Raise InvalidRequest if nothing is wanted, or log-probabilities of a prompt that the
        engine does not serve."""
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest.of("max_tokens", "0 goes with echo")
        if not self.scored_by:
            return
        if PROMPT_LOGPROBS not in facts.features:
            reason = "this model does not give log-probabilities of a prompt"
            raise Unsupported.of(self.scored_by, reason)
        if self.suffix:
            raise InvalidRequest.of("suffix", "no log-probabilities of its prompt are given")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest.of("prompt_logprobs", "not in a stream")

    def tokenise(self, tokenizer: GatewayTokenizer) -> tuple[TokenIds, ...]:
        try:
            return tuple(tuple(self._tokens(prompt, tokenizer)) for prompt in self.prompt)
        except ValueError as error:
            raise InvalidRequest.of("suffix", error) from error

    def _tokens(self, prompt: str | TokenIds, tokenizer: GatewayTokenizer) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.suffix:
            return tokenizer.infill(prompt, self.suffix)
        return tokenizer.encode(prompt, begin=self.add_special_tokens)

    def shown(
        self,
        streams: Sequence[ChoiceStream],
        tokenizer: GatewayTokenizer,
        prompts: Sequence[TokenIds],
    ) -> list[ChoiceStream]:
        if not self.echo and self.prompt_logprobs is None:
            return list(streams)
        texts = [text_of(prompt, tokenizer) for prompt in self.prompt]
        if sum(map(len, texts)) * self.n > MAX_ECHOED:
            raise InvalidRequest.of("echo", f"more than {MAX_ECHOED} characters of prompts")
        most = self.wanted_prompt_logprobs
        if most is not None and sum(map(len, prompts)) * (1 + most) > MAX_SCORED:
            reason = f"more than {MAX_SCORED} log-probabilities of prompts"
            raise InvalidRequest.of(self.prompt_field, reason)
        return [
            _with_prompt(self, EchoedPrompt(tokens, texts[i // self.n], tokenizer), stream)
            for i, (stream, tokens) in enumerate(zip(streams, prompts, strict=True))
        ]
