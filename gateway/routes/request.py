"""Reads request bodies, and checks the fields that chat completions and completions share.

* A field that no schema has is checked by `parameters`; none is ignored.
* As in OpenAI's API, a field that is null counts as absent.
* A Pydantic error becomes a 400 that names the field, but never quotes its value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from starlette.requests import ClientDisconnect, Request

from gateway.errors import ClientGone, InvalidRequest
from gateway.ports import Sampling, Tokenizer

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""The length is limited because withheld text is searched for stop strings at every token."""

TokenIds = tuple[int, ...]
Body = TypeVar("Body", bound=BaseModel)

_CODES: Final[Mapping[str, str]] = {
    "json_invalid": "invalid_json",
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
}


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class StrictModel(BaseModel):
    """An object in which unknown fields are an error and null counts as absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}


class StreamOptions(StrictModel):
    include_usage: Flag = False
    include_obfuscation: Flag | None = None
    """This is accepted and has no effect: chunks are never padded."""


class GenerationRequest(StrictModel):
    """A request for choices. Unknown fields are kept in `model_extra` for `parameters`."""

    model_config = ConfigDict(extra="allow")

    prompt_field: ClassVar[str]
    """The name of the field that errors about the prompt refer to."""

    default_tokens: ClassVar[int | None] = None
    """The limit of a completion that asks for none; None: what the context has room for."""

    model: Annotated[str, Field(min_length=1)]
    n: Annotated[Integer, Field(ge=1, le=8)] = 1
    stream: Flag = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    stop: Annotated[tuple[Stop, ...], BeforeValidator(_as_list), Field(max_length=4)] = ()
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Integer, Field(ge=-1, lt=2**31)] = 0
    """At 0 and -1, all tokens are kept."""

    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None = None

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if info.data.get("stream") is False:
            raise ValueError("stream_options needs stream: true")
        return value

    @property
    def prompt_count(self) -> int:
        return 1

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Job.top_logprobs."""

    @abstractmethod
    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        """Return the tokens of each prompt, or raise InvalidRequest."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.min_p, max(self.top_k, 0), self.top_p)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


async def parse(schema: type[Body], request: Request) -> Body:
    """Return the JSON body of a request. Raises InvalidRequest or ClientGone."""
    try:
        return schema.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect as error:
        raise ClientGone("the client went away before its request was complete") from error


def invalid(error: ValidationError, *, under: str | None = None) -> InvalidRequest:
    """Translate the first error of a validation; `under` is the field that was validated."""
    first = error.errors()[0]
    param = ".".join(str(step) for step in (under, *first["loc"]) if step is not None) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        reason = "the body is not valid JSON"
    message = f"{param}: {reason}" if param else reason
    return InvalidRequest(message, param=param, code=_CODES.get(first["type"]))
