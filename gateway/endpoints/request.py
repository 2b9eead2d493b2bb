"""Defines the one kind of request that is answered, to which every endpoint converts its own.

Chat completions and completions are such requests themselves. `parameters` checks the fields
that only some engines serve.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Final

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from gateway.endpoints.parameters import Servable
from gateway.output.answer_grammar import Constraint
from gateway.output.detokenise import Detokeniser, Piece, StopConditions
from gateway.output.output_format import OutputFormat
from gateway.output.stream import ChoiceStream, Reader
from gateway.ports import Facts, GatewayTokenizer
from gateway.schema import FIRST_ERROR, Flag, Integer, Number, RequestModel
from speculation.messages import Sampling
from speculation.model_facts import MAX_TEMPERATURE, MAX_TOP_K

Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""The length is limited because withheld text is searched for stop strings at every token."""

MAX_STOPS: Final = 16
Stops = Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS), FIRST_ERROR]

MIN_TEMPERATURE: Final = 0.01
"""A temperature between 0 and this is raised to this, as in vLLM, because logits are divided by
the temperature."""

TokenIds = tuple[int, ...]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def minus_one_is_none(value: object) -> object:
    """Return None for -1, which means in llama-server and vLLM that a field is not set."""
    return None if type(value) is int and value == -1 else value


Limit = Annotated[
    Annotated[Integer, Field(ge=1)] | None,
    BeforeValidator(
        minus_one_is_none, json_schema_input_type=Annotated[int, Field(ge=-1)] | None
    ),
]
"""A limit is a number of tokens; -1 means that there is no limit, as in llama-server."""

Seed = Annotated[
    Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None, BeforeValidator(minus_one_is_none)
]
"""A seed of -1 is replaced by a drawn one, as in vLLM and llama-server."""


class StreamOptions(RequestModel):
    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    """vLLM has this field: with `include_usage`, each chunk has the usage so far."""

    include_speculation: Flag = False
    """Chunks also report how their text was generated, see docs/api.md."""

    include_obfuscation: Flag | None = None
    """This field is accepted and has no effect: chunks are never padded."""


class GenerationRequest(Servable):
    """Parses a request for choices."""

    prompt_field: ClassVar[str]
    """Errors about the prompt refer to the field with this name."""

    default_tokens: ClassVar[int | None] = None
    """A completion without a limit of its own has this one; None: the room in the context."""

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
    """vLLM has this field: the stop string or stop token that ends the text is part of it."""

    temperature: Annotated[Number, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Integer, Field(ge=-1, lt=MAX_TOP_K + 1)] = 0
    """At 0 and -1, all tokens are kept."""

    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Seed = None

    @field_validator("stream_options")
    @classmethod
    def _are_of_a_stream(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if info.data.get("stream") is False:
            raise ValueError("they are only allowed when stream is true")
        return value

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
        """Return the limit of a request without one; None for the room in the context."""
        has_limit = {"max_tokens", "max_completion_tokens"} & self.model_fields_set
        return None if has_limit else self.default_tokens

    @property
    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Return the value for Job.top_logprobs."""

    @property
    def wanted_prompt_logprobs(self) -> int | None:
        """Return the value for Job.prompt_logprobs."""
        return None

    @property
    def scored_by(self) -> str:
        """Return the field that asks for log-probabilities of the prompt; "" if none does."""
        return ""

    @abstractmethod
    def tokenise(self, tokenizer: GatewayTokenizer) -> tuple[TokenIds, ...]:
        """Return the tokens of each prompt. Raises InvalidRequest."""

    def reader(
        self, output_format: OutputFormat, prompt: TokenIds, stop_tokens: frozenset[int]
    ) -> Reader:
        """Return the Reader of one choice, which continues `prompt`. stop_tokens: the model's
        own, which end the choice too."""
        return self._detokeniser(stop_tokens)(output_format.tokenizer.piece)

    def constraint(
        self, output_format: OutputFormat, prompt: TokenIds, content: Constraint | None
    ) -> Constraint | None:
        """Return the constraint of a whole answer, whose content has the constraint `content`.
        Raises InvalidRequest."""
        return content

    def more_extras(
        self, output_format: OutputFormat, prompt: TokenIds
    ) -> Mapping[str, object]:
        """Return further extras of a job. Raises InvalidRequest."""
        return {}

    def _detokeniser(self, stop_tokens: frozenset[int]) -> Callable[[Piece], Detokeniser]:
        stop = StopConditions(
            tokens=stop_tokens.union(self.stop_token_ids),
            strings=self.stop,
            min_tokens=self.min_tokens,
            is_shown=self.include_stop_str_in_output,
        )
        return partial(
            Detokeniser,
            stop=stop,
            watched=self.is_watched,
            lists_all=self.wanted_prompt_logprobs is not None,
        )

    def check_served(self, facts: Facts) -> None:
        """Raise InvalidRequest if the request needs what the engine does not serve."""

    def shown(
        self,
        streams: Sequence[ChoiceStream],
        tokenizer: GatewayTokenizer,
        prompts: Sequence[TokenIds],
    ) -> list[ChoiceStream]:
        """Return the choices, in order, in the form that this request asks for. prompts: of
        each choice."""
        return list(streams)

    def sampling(self, defaults: Mapping[str, float]) -> Sampling:
        """Return the request's settings, completed by `defaults`, the model's own."""

        def setting(name: str) -> float:
            own: float = getattr(self, name)
            return own if name in self.model_fields_set else defaults.get(name, own)

        temperature, top_k = setting("temperature"), max(int(setting("top_k")), 0)
        if temperature:
            temperature = max(temperature, MIN_TEMPERATURE)
        return Sampling(temperature, setting("min_p"), top_k, setting("top_p"))

    @property
    def include_usage(self) -> bool:
        return self._asks("include_usage")

    @property
    def counts_along(self) -> bool:
        """True if each chunk has the usage so far."""
        return self.include_usage and self._asks("continuous_usage_stats")

    @property
    def is_watched(self) -> bool:
        """True if the stream reports speculation."""
        return self.stream and self._asks("include_speculation")

    @property
    def unserved_options(self) -> tuple[str, ...]:
        """Return the `stream_options` in use that only OpenAI's chats and completions serve."""
        names = ("include_usage", "continuous_usage_stats", "include_speculation")
        return tuple(f"stream_options.{name}" for name in names if self._asks(name))

    def _asks(self, option: str) -> bool:
        return bool(getattr(self.stream_options, option, False))
