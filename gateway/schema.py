"""The schemas of bodies: their base, bounds of their JSON, and the fields that are known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, NoReturn, TypeVar

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.errors import InvalidRequest, Unsupported

# Bounds how many values a JSON text has, before Python objects are made of them.
#
# A Python object takes far more memory and time than the byte of JSON that asks for it: one
# megabyte may have half a million arrays. This module only searches bytes, and parses nothing.

MAX_CONTAINERS: Final = 32_768
"""A body has at most this many objects and arrays: 4,096 messages with a part and a tool call
each have 25,000."""

MAX_STRINGS: Final = 98_304
"""A body has at most this many strings, including the names of fields: such messages have
70,000."""

MAX_VALUES: Final = 1 << 19
"""A body has at most this many values, not counting the first of each object and array: two
prompts of 262,144 token ids reach the limit."""

SMALL_BYTES: Final = 64 * 1024
"""Up to this size a text is parsed within milliseconds, whatever it holds, and its values are
not counted. It may be a prompt of 10,000 tokens."""

PIECE_BYTES: Final = 1 << 18
"""This many bytes are counted at once, in a few milliseconds in which no other thread runs."""


@dataclass(frozen=True, slots=True)
class Structure:
    containers: int = 0
    strings: int = 0
    commas: int = 0

    def __add__(self, other: Structure) -> Structure:
        return Structure(
            self.containers + other.containers,
            self.strings + other.strings,
            self.commas + other.commas,
        )


class Values:
    """Counts the values of all JSON texts that are parsed for one request, together: the body,
    a text within it, and what is kept of a conversation."""

    def __init__(self) -> None:
        self._bytes = 0
        self._counted = Structure()

    def add(self, text: bytes) -> None:
        """Count a text. Raises InvalidRequest for more values than any client sends."""
        self._bytes += len(text)
        if self._bytes <= SMALL_BYTES:
            return
        before = self._counted
        for counted in count_structure(text):
            self._counted = total = before + counted
            _check("objects and arrays", total.containers, MAX_CONTAINERS)
            _check("strings", total.strings, MAX_STRINGS)
            _check("values", total.commas, MAX_VALUES)


def check_structure(text: bytes) -> None:
    """Raise InvalidRequest for a JSON text with more values than any client sends."""
    Values().add(text)


def count_structure(text: bytes, piece_bytes: int = PIECE_BYTES) -> Iterator[Structure]:
    """Yield the counts of a JSON text up to the end of each piece. If the text is not JSON, the
    counts are meaningless."""
    containers = quotes = commas = 0
    escape, inside = b"", False
    for start in range(0, len(text), piece_bytes):
        piece = escape + text[start : start + piece_bytes]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        escape = b"\\" * (backslashes % 2)  # it escapes the first byte of the next piece
        piece = piece.removesuffix(escape)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[inside::2])
        containers += outside.count(b"{") + outside.count(b"[")
        commas += outside.count(b",")
        quotes += len(parts) - 1
        inside = quotes % 2 == 1
        yield Structure(containers, quotes // 2, commas)


def _check(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"the body has more than {most} {what}", code="too_many_values")


# Defines the types by which request bodies are declared, and their errors.
#
# * As in OpenAI's API, a field that is null counts as absent.
# * A field that no schema has is kept, and `unknown_inside` names it: nothing is lost silently.
# * A Pydantic error becomes a 400 that names the field, but never quotes its value.

Model = TypeVar("Model", bound=BaseModel)
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""Functions have names as Anthropic allows them, and with dots; OpenAI allows 64 letters."""

_CODES: Final[Mapping[str, str]] = {
    "json_invalid": "invalid_json",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
    "unserved": "unsupported_parameter",
}
_WRONG: Final = frozenset({"json_invalid", "missing", "unserved", "value_error"})
"""No server of the same API serves what has an error of these types; of other types, such as
`less_than_equal`, are the bounds of this service."""


def _only_false(value: object) -> object:
    if value is not False:
        raise PydanticCustomError("unserved", "this is not supported")
    return value


_UNION_MEMBER: Final = re.compile(r"str$|(?:tuple|dict|literal)\[")
"""Pydantic names the members of a union so; no client does."""

FIRST_ERROR: Final = Field(fail_fast=True)
"""Ends the validation of a sequence at its first error, the only one that is reported: each
further error takes several times as long as a valid item."""

Unserved = Annotated[bool, BeforeValidator(_only_false)]
"""This service knows the field but does not serve it: the field is false, or absent."""


class RequestModel(BaseModel):
    """Parses a JSON object of a request. Unknown fields are kept in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}

    def unknown_inside(self) -> list[str]:
        """Return the names of fields inside nested objects that the objects' schemas do not
        have, such as `messages.cache_control`."""
        names = []
        for name, value in self.__dict__.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, RequestModel):
                    inside = (*(item.model_extra or ()), *item.unknown_inside())
                    names += [f"{name}.{each}" for each in inside]
        return names


class Converted(RequestModel):
    """Parses a body that becomes the request of another endpoint, where its count goes on."""

    _values: Values = PrivateAttr(default_factory=Values)

    @property
    def values(self) -> Values:
        return self._values

    def model_post_init(self, context: object, /) -> None:
        if isinstance(context, Values):
            self._values = context


class Typed(RequestModel):
    """Parses an object whose type, its first field, determines which fields are required."""

    model_config = ConfigDict(validate_default=True)
    needed: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Maps each type to its required fields; a type that is missing here requires the field
    with its own name."""

    @field_validator("*")
    @classmethod
    def _goes_with_its_type(cls, value: object, info: ValidationInfo) -> object:
        kind = str(info.data.get(next(iter(cls.model_fields)), ""))
        if value is None and info.field_name in cls.needed.get(kind, (kind,)):
            missing()
        return value


def validated(
    schema: type[Model],
    body: object,
    names: Mapping[str, str] = MappingProxyType({}),
    values: Values | None = None,
) -> Model:
    """Return `body` as parsed by a schema. names: maps the schema's names of fields to the
    client's. values: count those of JSON within texts, too. Raises InvalidRequest."""
    try:
        return schema.model_validate(body, context=values)
    except ValidationError as error:
        raised = invalid(error)
        raised.name_field(names)
        raise raised from None


def missing() -> NoReturn:
    """Raise, inside a validator, the error of a missing field."""
    raise PydanticCustomError("missing", "Field required")


def unsupported(message: str) -> NoReturn:
    """Raise, inside a validator, the error of a value that this service does not serve."""
    raise PydanticCustomError("unsupported", "{message}", {"message": message})


def invalid(error: ValidationError, *, under: str | None = None) -> InvalidRequest:
    """Translate the first error of a validation; `under` is the field that was validated."""
    first = error.errors(include_url=False, include_input=False)[0]
    steps = (str(step) for step in (under, *first["loc"]) if step is not None)
    param = ".".join(step for step in steps if not _UNION_MEMBER.match(step)) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        reason = "the body is not valid JSON"
    message = f"{param}: {reason}" if param else reason
    kind = InvalidRequest if first["type"] in _WRONG else Unsupported
    return kind(message, param=param, code=_CODES.get(first["type"], InvalidRequest.code))


# Lists the fields by which OpenAI, vLLM and llama-server let a client change an answer.
#
# A request that sets such a field is served as it asks or gets a 400 that names the field. Any
# other field cannot change an answer, so it is accepted and reported as ignored.
#
# A field that only refines one of these is not listed: `mirostat_tau` means nothing without
# `mirostat`, and `dry_base` nothing without `dry_multiplier`.

_OPENAI: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "messages": (),
    "modalities": (["text"],),
    "moderation": (),
    "prompt": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}

_VLLM: Final[Mapping[str, tuple[object, ...]]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "early_stopping": (False,),
    "enable_response_messages": (False,),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "previous_input_messages": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "thinking_token_budget": (-1,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}

_CHAIN: Final = ["top_k", "typ_p", "top_p", "min_p"]
_LLAMA_SERVER: Final[Mapping[str, tuple[object, ...]]] = {
    "adaptive_target": (-1,),
    "chat_parser": (),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "generation_prompt": (),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "image_data": ([],),
    "lora": ([],),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "n_indent": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "penalize_nl": (False,),
    "post_sampling_probs": (False,),
    "reasoning_budget_tokens": (-1,),
    "return_tokens": (False,),
    "samplers": (
        ["penalties", "dry", "top_n_sigma", *_CHAIN, "xtc", "temperature"],
        [*_CHAIN, "temperature"],  # default of llama-server's web page
        "edskypmxt",
        "edkypmxt",
    ),
    "t_max_predict_ms": (-1, 0),
    "tfs_z": (1,),
    "thinking_budget": (-1,),
    "thinking_budget_tokens": (-1,),
    "top_n_sigma": (-1,),
    "typ_p": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {**_OPENAI, **_VLLM, **_LLAMA_SERVER}
"""Maps each field to the values that change nothing: its servers' defaults."""


OPERATORS: Final = frozenset(
    {"kv_transfer_params", "ec_transfer_params", "priority", "request_id", "session_id"}
)
"""These fields of vLLM's API are an operator's: where KV comes from, whose request is first,
and by which name it is known. No request that is passed on has them."""


def without_operators(body: bytes) -> bytes:
    """Return the JSON object of a body without the fields in OPERATORS; the same bytes if it
    has none. Raises InvalidRequest for any other body, where another parser may find them."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is no JSON object", code="invalid_json") from None
    if OPERATORS.isdisjoint(fields):
        return body
    return msgspec.json.encode({n: v for n, v in fields.items() if n not in OPERATORS})


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Return True if a value is one of `neutral`, where `false` does not count as 0."""
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)
