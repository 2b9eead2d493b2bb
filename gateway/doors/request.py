"""Reads request bodies, and checks the fields that chat completions and completions share.

A field that no schema has is checked by `parameters`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from starlette.requests import Request

from picospec.gateway.doors.services import Services
from picospec.gateway.errors import ApiError
from picospec.gateway.grammars.answer import Constraint
from picospec.gateway.http.request_body import read_body
from picospec.gateway.output.choice_stream import ChoiceStream, DeltaReader
from picospec.gateway.output.detokenise import Detokeniser, Piece
from picospec.gateway.output.style import Style
from picospec.gateway.ports import Facts, Sampling, Tokenizer
from picospec.gateway.schemas.base import (
    FIRST_ERROR,
    Flag,
    Integer,
    Number,
    RequestModel,
    invalid,
    unknown_fields,
)
from picospec.gateway.schemas.structure import SMALL_BYTES, check_structure

Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""The length is limited because withheld text is searched for stop strings at every token."""

MAX_STOPS: Final = 16
Stops = Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS), FIRST_ERROR]

LEAST_TEMPERATURE: Final = 0.01
"""A lower one, but for 0, is this one, as in vLLM: logits are divided by it."""

TokenIds = tuple[int, ...]
Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

LEAST_LIMIT_BYTES: Final = 1 << 20
"""The limit of bodies for a short context, or one that is not known."""

BYTES_A_TOKEN: Final = 32
"""The limit of bodies grows with the context by so much. In JSON a token has about 5 bytes, and
as escapes of UTF-16 about 12; the rest is room for what surrounds the texts."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _minus_one_is_none(value: object) -> object:
    return None if type(value) is int and value == -1 else value


Limit = Annotated[
    Annotated[Integer, Field(ge=1)] | None,
    BeforeValidator(
        _minus_one_is_none, json_schema_input_type=Annotated[int, Field(ge=-1)] | None
    ),
]
"""A number of tokens; -1, as llama-server takes it, is no limit."""

Seed = Annotated[
    Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None, BeforeValidator(_minus_one_is_none)
]
"""At -1 one is drawn, as vLLM and llama-server do."""


class StreamOptions(RequestModel):
    include_usage: Flag = False
    include_speculation: Flag = False
    """Chunks also tell how their text came about, see docs/api.md."""

    steady: Flag = False
    """Tokens that came together reach the client one after another, see docs/api.md."""

    include_obfuscation: Flag | None = None
    """This is accepted and has no effect: chunks are never padded."""


class GenerationRequest(RequestModel):
    """A request for choices."""

    prompt_field: ClassVar[str]
    """The name of the field that errors about the prompt refer to."""

    default_tokens: ClassVar[int | None] = None
    """The limit of a completion that asks for none; None: what the context has room for."""

    model: Annotated[str, Field(min_length=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=8)] = Field(
        1, validation_alias=AliasChoices("n", "n_cmpl")
    )
    stream: Flag = False
    stream_options: StreamOptions | None = None
    max_tokens: Limit = Field(None, validation_alias=AliasChoices("max_tokens", "n_predict"))
    max_completion_tokens: Limit = None
    stop: Annotated[Stops, BeforeValidator(_as_list, json_schema_input_type=Stop | Stops)] = ()
    include_stop_str_in_output: Flag = False
    """vLLM's: the stop string or stop token that ends the text is part of it."""

    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Integer, Field(ge=-1, lt=2**31)] = 0
    """At 0 and -1, all tokens are kept."""

    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Seed = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_the_only_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") not in (None, value):
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        return value

    @property
    def prompt_count(self) -> int:
        return 1

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def usual_tokens(self) -> int | None:
        """The limit where the request has none; None for what the context has room for."""
        has_limit = {"max_tokens", "max_completion_tokens"} & self.model_fields_set
        return None if has_limit else self.default_tokens

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Job.top_logprobs."""

    @abstractmethod
    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        """Return the tokens of each prompt, or raise InvalidRequest."""

    def reader(
        self, style: Style, prompt: TokenIds, stop_tokens: frozenset[int], min_tokens: int
    ) -> DeltaReader:
        """Return what reads one choice; `prompt` is the one that it continues."""
        return self._detokeniser(stop_tokens, min_tokens)(style.tokenizer.piece)

    def constraint(
        self, style: Style, prompt: TokenIds, content: Constraint | None
    ) -> Constraint | None:
        """Return what an answer keeps to, where its `content` does. Raises InvalidRequest."""
        return content

    def _detokeniser(
        self, stop_tokens: frozenset[int], min_tokens: int
    ) -> Callable[[Piece], Detokeniser]:
        return partial(
            Detokeniser,
            stop_tokens=stop_tokens,
            min_tokens=min_tokens,
            stops=self.stop,
            include_stop=self.include_stop_str_in_output,
            watched=self.is_watched,
        )

    def check_served(self, facts: Facts) -> None:
        """Raise InvalidRequest for what the engine does not serve."""

    def shown(
        self, streams: Sequence[ChoiceStream], tokenizer: Tokenizer
    ) -> list[ChoiceStream]:
        """Return the choices, in order, as this request wants to see them."""
        return list(streams)

    def sampling(self, defaults: Mapping[str, float]) -> Sampling:
        """Return the request's settings, and the model's own `defaults` where it has none."""

        def setting(name: str) -> float:
            own: float = getattr(self, name)
            return own if name in self.model_fields_set else defaults.get(name, own)

        temperature, top_k = setting("temperature"), max(int(setting("top_k")), 0)
        if temperature:
            temperature = max(temperature, LEAST_TEMPERATURE)
        return Sampling(temperature, setting("min_p"), top_k, setting("top_p"))

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def is_watched(self) -> bool:
        """Whether the stream tells of speculation."""
        options = self.stream_options
        return self.stream and options is not None and options.include_speculation

    @property
    def is_steady(self) -> bool:
        """Whether tokens that came together are streamed one after another."""
        options = self.stream_options
        return self.stream and options is not None and options.steady

    def unknown_inside(self) -> list[str]:
        """Return the unknown fields of the objects in the body, without its own."""
        return [name for name in unknown_fields(self) if name not in (self.model_extra or ())]


async def parse(schema: type[Body], services: Services, request: Request) -> Body:
    """Return the JSON body of a request. Raises InvalidRequest, or what `read_body` and
    `checked` raise."""
    body = await read_body(request, await _limit_bytes(services, request))
    return await checked(services, request, partial(_validated, schema, body))


async def checked(services: Services, request: Request, check: Callable[[], T]) -> T:
    """Return what `check` makes of a request whose body has been read: at once if it is small,
    else in a thread, one after the other. Raises Overloaded, or what `check` raises."""
    if len(await request.body()) <= SMALL_BYTES:
        return check()
    owner = request.state.account.tenant
    return await services.checks.in_thread(owner, services.checker, check)


def _validated(schema: type[Body], body: bytes) -> Body:
    check_structure(body)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


async def _limit_bytes(services: Services, request: Request) -> int:
    """Return the most bytes that a body may have: what the context holds, as far as the engine
    can say how long it is. It is not asked about a body that is short enough for any."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) <= LEAST_LIMIT_BYTES:
        return LEAST_LIMIT_BYTES
    try:
        facts = await services.engine.facts()
    except ApiError:  # the fallback may answer, or else the request fails once it was checked
        return LEAST_LIMIT_BYTES
    return max(LEAST_LIMIT_BYTES, facts.context_tokens * BYTES_A_TOKEN)
