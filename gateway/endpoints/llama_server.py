"""The endpoint of llama-server's API: POST /completion and POST /infill."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, ClassVar, Final

from msgspec.structs import replace
from pydantic import AliasChoices, BeforeValidator, Field, field_validator

from gateway.answer_fields import NEUTRAL, is_neutral
from gateway.endpoints.completions import Prompts, extensions_of
from gateway.endpoints.endpoint import Answer, EndpointRequest, Heading, Json, sent_event
from gateway.endpoints.request import GenerationRequest, TokenIds, minus_one_is_none
from gateway.errors import InvalidRequest
from gateway.output.detokenise import TextDelta
from gateway.output.stream import ChoiceStream
from gateway.ports import GatewayTokenizer
from gateway.schema import FIRST_ERROR, Integer, RequestModel, unsupported

# Ends an answer by its lines: at a smaller indentation, or after a time.
#
# Editors ask for these limits: a line that is less indented than the line at the cursor belongs
# to the text that follows, and a late suggestion is of no use. The limit of time counts from
# the first token, and applies only once there is a whole line to show.

_LINE: Final = re.compile(r"\n([ \t]*)(?=[^ \t])")
_OPEN_LINE: Final = re.compile(r"\n[ \t]*\Z")


class LineLimits:
    """Decides what may be shown of a text that comes piece by piece.

    indent: a line after the first that begins with fewer spaces and tabs ends the text before
    it; so does an empty line. max_s: seconds from the first piece; 0 for no limit.
    """

    def __init__(self, *, indent: int, max_s: float) -> None:
        self._indent = indent
        self._max_s = max_s
        self._ends_s: float | None = None
        self._withheld = ""
        self._has_line = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether the whole text ends with it."""
        text, self._withheld = self._withheld + text, ""
        if self._indent:
            for line in _LINE.finditer(text):
                if len(line[1]) < self._indent:
                    return text[: line.start()], True
            if begun := _OPEN_LINE.search(text):
                text, self._withheld = text[: begun.start()], begun[0]
        self._has_line = self._has_line or "\n" in text
        return text, False

    def is_late(self, now_s: float) -> bool:
        """Return True if the time is up and a whole line was fed."""
        if self._ends_s is None:
            self._ends_s = now_s + self._max_s
        return self._has_line and self._max_s > 0 and now_s > self._ends_s

    def finish(self) -> str:
        """Return the withheld rest of a text that has ended by itself."""
        return self._withheld


async def limited(
    stream: ChoiceStream, limits: LineLimits, clock: Callable[[], float]
) -> ChoiceStream:
    """Yield a choice up to one of its limits, at which it finishes with "length"."""
    async with aclosing(stream):
        async for index, delta in stream:
            text, ends = limits.feed(delta.text)
            if ends or delta.finish is not None or limits.is_late(clock()):
                break
            yield index, replace(delta, text=text)
        else:
            return
    if ends or delta.finish is None:
        yield index, replace(delta, text=text, finish="length")
    else:
        yield index, replace(delta, text=text + limits.finish())


# Parses the bodies of POST /completion and POST /infill.

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


# Writes the answers of POST /completion and POST /infill.

_ABSENT: Final = object()


def convert(body: NativeRequest) -> EndpointRequest:
    """Return what a request asks for: the request itself."""
    return EndpointRequest(body, "cmpl-", partial(NativeAnswer, body), body.unserved_options)


class NativeAnswer(Answer):
    """Writes one object for each choice, and in a stream also one for each piece of text."""

    def __init__(self, body: NativeRequest, heading: Heading) -> None:
        self._fields = body.response_fields
        self._heading = heading
        self._usage = heading.usage
        self._tokens = Counter[int]()

    def events(self, index: int, delta: TextDelta) -> bytes:
        self._tokens[index] += delta.tokens
        pieces = [self._piece(index, delta.text)] if delta.text else []
        if delta.finish is not None:
            pieces.append(self._last(index, "", delta))
        return b"".join(map(sent_event, pieces))

    def full_answer(self, choices: Sequence[TextDelta]) -> object:
        """Return the object of the choice, or all if there are several."""
        self._tokens.update({index: each.tokens for index, each in enumerate(choices)})
        shown = [self._last(i, each.text, each) for i, each in enumerate(choices)]
        return shown[0] if len(shown) == 1 else shown

    def _piece(self, index: int, text: str) -> Json:
        return {
            "index": index,
            "content": text,
            "stop": False,
            "tokens_predicted": self._tokens[index],
            "tokens_evaluated": self._usage.prompt_tokens,
        }

    def _last(self, index: int, text: str, delta: TextDelta) -> Json:
        ended_by = "limit" if delta.finish == "length" else "word" if delta.stop else "eos"
        answer = {
            **self._piece(index, text),
            "stop": True,
            "model": self._heading.model,
            "truncated": False,
            "stop_type": ended_by,
            "stopping_word": delta.stop or "",
            "tokens_cached": self._usage.prompt_tokens + self._tokens[index],
            **extensions_of(self._usage),
        }
        return _only(self._fields, answer) if self._fields else answer


def _only(paths: Sequence[str], answer: Json) -> Json:
    """Return a map from paths, such as "timings/prompt_n", to the fields at these paths."""
    values = {path: _at(path, answer) for path in paths}
    return {path: value for path, value in values.items() if value is not _ABSENT}


def _at(path: str, value: object) -> object:
    for name in path.split("/"):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value
