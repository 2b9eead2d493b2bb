"""The endpoint of POST /v1/completions, and what its answers share with those of chats."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec
from msgspec.structs import replace
from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator

from gateway.endpoints.endpoint import (
    Answer,
    EndpointRequest,
    Entries,
    Heading,
    Json,
    finite,
    sent_event,
)
from gateway.endpoints.request import GenerationRequest, TokenIds, minus_one_is_none
from gateway.errors import InvalidRequest, Unsupported
from gateway.hosting.settings import MAX_CHOICES
from gateway.output.detokenise import Finish, LogprobEntry, TextDelta
from gateway.output.stream import ChoiceStream
from gateway.ports import Facts, GatewayTokenizer, Statistics
from gateway.request_context import Usage
from gateway.schema import Flag, Integer
from gateway.watching import Report, Spans, Watch
from speculation.messages import MAX_TOP_LOGPROBS, PROMPT_LOGPROBS, TokenLogprob

T = TypeVar("T")

# Writes what a usage counted: OpenAI's `usage`, vLLM's `metrics`, llama.cpp's `timings`.


def usage_of(usage: Usage) -> Json:
    """Return OpenAI's `usage`."""
    counted = usage.total()
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": counted.accepted_prediction_tokens,
            "rejected_prediction_tokens": counted.rejected_prediction_tokens,
        },
    }


def extensions_of(usage: Usage) -> Json:
    """Return the fields that end an answer: vLLM's `metrics` and llama.cpp's `timings`."""
    known = _speculative_decoding(usage.total()) if usage.statistics else None
    return {"metrics": {"speculative_decoding": known}, "timings": _timings(usage)}


def _speculation(usage: Usage) -> Json:
    """Return the sums over all choices, which end a watched answer."""
    counted = usage.total()
    return {
        "passes": counted.target_passes,
        "rows": counted.target_passes + counted.draft_tokens,
        "drafted": counted.draft_tokens,
        "accepted": counted.accepted_tokens,
        "acceptance": counted.acceptance,
        "tokens_per_s": _timings(usage)["predicted_per_second"],
    }


def _timings(usage: Usage) -> Json:
    """Return `timings`; "prompt" covers the time to the first token and the tokens read."""
    prompt_s = usage.times.first_s or 0.0
    predicted_s = usage.times.elapsed_s - prompt_s
    counted = usage.total()
    read = usage.prompt_tokens - counted.cached_tokens
    return {
        "cache_n": counted.cached_tokens,
        "prompt_n": read,
        "prompt_ms": prompt_s * 1000,
        "prompt_per_token_ms": _ratio(prompt_s * 1000, read),
        "prompt_per_second": _ratio(read, prompt_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_s * 1000,
        "predicted_per_token_ms": _ratio(predicted_s * 1000, usage.completion_tokens),
        "predicted_per_second": _ratio(usage.completion_tokens, predicted_s),
        "draft_n": counted.draft_tokens,
        "draft_n_accepted": counted.accepted_tokens,
    }


def _speculative_decoding(counted: Statistics) -> Json:
    """Return vLLM's `metrics.speculative_decoding` (summary), with two fields of our own.

    `acceptance_histogram[j]` is the number of passes that accepted exactly j draft tokens, of
    those that verified any. Our own fields are `num_target_passes`, which includes fill-in
    passes, and `num_accepted_tokens_per_pos`.
    """
    at_least = (counted.drafts, *counted.accepted_per_position, 0)
    return {
        "mean_acceptance_length": 1.0 + _ratio(counted.accepted_tokens, counted.drafts),
        "draft_acceptance_rate": counted.acceptance,
        "acceptance_histogram": [here - further for here, further in pairwise(at_least)],
        "num_spec_steps": counted.drafts,
        "num_accepted_draft_tokens": counted.accepted_tokens,
        "num_draft_tokens": counted.draft_tokens,
        "num_target_passes": counted.target_passes,
        "num_accepted_tokens_per_pos": list(counted.accepted_per_position),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# Writes what the answers of OpenAI's chat completions and completions share.
#
# A stream has chunks, `data: {...}`, and ends with [DONE], or with `data: {"error": ...}`.

_NO_REPORT: Final = Report({})


class ChunkAnswer(Answer):
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, request: GenerationRequest, heading: Heading) -> None:
        self.wants_logprobs = request.wanted_logprobs is not None
        self._heading = heading
        self._answer_usage = heading.usage
        self._usage = request.include_usage
        self._counts_along = request.counts_along
        self._watch = Watch() if request.is_watched else None
        self._begun: set[int] = set()  # choices that have a chunk
        self._ended = 0  # how many choices have finished

    def events(self, index: int, delta: TextDelta) -> bytes:
        return b"".join(map(sent_event, self._chunks(index, delta)))

    def end(self) -> bytes:
        last: Json = {}
        if self._usage:
            last |= {"usage": usage_of(self._answer_usage), **extensions_of(self._answer_usage)}
        if self._watch is not None:
            last["speculation"] = self._watch.totals() | _speculation(self._answer_usage)
        ends = [{**self._body([], chunk=True), **last}] if last else []
        return b"".join(map(sent_event, ends)) + b"data: [DONE]\n\n"

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        shown = [{"index": i, **self.choice(choice)} for i, choice in enumerate(choices)]
        body = self._body(shown, chunk=False)
        return {
            **body,
            "usage": usage_of(self._answer_usage),
            **extensions_of(self._answer_usage),
        }

    def first_chunk(self, delta: TextDelta) -> Json | None:
        """Return the chunk before a choice's first delta; None if the API has no such chunk."""
        return None

    def chunks(self, delta: TextDelta, report: Report) -> list[tuple[Json, Spans]]:
        """Return the chunks of a delta, without its finish, each with the origins of its text,
        which are empty if the client does not watch."""
        shows = delta.text or delta.entries
        return [(self.text_chunk(delta.text, delta.entries), report.text)] if shows else []

    @abstractmethod
    def text_chunk(self, text: str, entries: Entries) -> Json: ...

    @abstractmethod
    def last_chunk(self, finish: Finish) -> Json: ...

    @abstractmethod
    def choice(self, whole: TextDelta) -> Json:
        """Return a choice that is not streamed, without its index."""

    def _chunks(self, index: int, delta: TextDelta) -> Iterator[Json]:
        first = self.first_chunk(delta) if index not in self._begun else None
        self._begun.add(index)
        if first is not None:
            yield self._indexed(index, first)
        watch = self._watch if delta.report is not None else None
        report = delta.report or _NO_REPORT
        for event in watch.take(index, report) if watch else ():
            yield {**self._chunked([]), "speculation": event}
        for chunk, spans in self.chunks(delta, report):
            of = {"spans": spans, "tokens": watch.count(index)} if watch else None
            shown = self._indexed(index, chunk)
            yield {**shown, "speculation": of} if of else shown
        if delta.finish is not None:
            self._ended += 1
            last = self._indexed(index, self.last_chunk(delta.finish))
            if self._watch is not None and (tokens := self._watch.count(index)):
                last["speculation"] = {"tokens": tokens}
            ends_answer = self._ended == self._heading.choices and not self._usage
            yield {**last, **extensions_of(self._answer_usage)} if ends_answer else last

    def _indexed(self, index: int, choice: Json) -> Json:
        return self._chunked([{"index": index, **choice}])

    def _chunked(self, choices: Sequence[Json]) -> Json:
        body = self._body(choices, chunk=True)
        usage = usage_of(self._answer_usage) if self._counts_along else None
        return {**body, "usage": usage} if self._usage else body

    def _body(self, choices: Sequence[Json], *, chunk: bool) -> Json:
        """Return the body of a whole answer, or of one chunk of a stream."""
        heading = self._heading
        body: Json = {
            "id": heading.id,
            "object": self.chunk_object if chunk else self.object,
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        if heading.fingerprint is not None:
            body["system_fingerprint"] = heading.fingerprint
        return body


# Parses the body of POST /v1/completions.


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


# Writes the answer of POST /v1/completions.


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
