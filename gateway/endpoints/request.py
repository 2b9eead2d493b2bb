"""Defines the one kind of request that is answered, to which every endpoint converts its own.

Chat completions and completions are such requests themselves. `parameters` checks the fields
that only some engines serve.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from gateway import structured_outputs
from gateway.answer_fields import NEUTRAL, is_neutral
from gateway.endpoints.messages_schema import PredictedOutput, text_of
from gateway.errors import InvalidRequest, Unsupported
from gateway.output.detokenise import Detokeniser, Piece
from gateway.output.formats.base import Constraint
from gateway.output.output_format import OutputFormat
from gateway.output.stream import ChoiceStream, Reader
from gateway.ports import Facts, GatewayTokenizer
from gateway.schema import FIRST_ERROR, Flag, Integer, Number, RequestModel
from speculation.messages import MAX_TEMPERATURE, MAX_TOP_K, SALT, Sampling

# Checks the parameters that some engines serve, and those that no engine serves.
#
# A parameter that would change the output is never ignored. It gets a 400 that names it, unless
# its value is neutral (`presence_penalty: 0`) or the engine serves it (`Facts.features`); a
# served one is checked and passed on in `Job.extras`, under one name and in one form. A
# parameter that cannot change the output is never an error; the answer names it in a header.

Penalty = Annotated[Number, Field(ge=-2, le=2)]
Repetition = Annotated[Number, Field(ge=0.01, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]

MAX_BIASES: Final = 1024
"""A logit_bias has at most this many tokens: they cost time in each row of the session."""

MAX_STOP_TOKENS: Final = 64
"""A client gives at most this many; an Open also has the model's own, and so a higher limit."""

MAX_SALT: Final = 1024
"""At most this many characters of a cache salt count. It changes no answer."""

MAX_UNKNOWN: Final = 256
"""A body has at most this many fields that no schema has; clients send about ten."""


def _few_biases(value: object) -> object:
    """Raise ValueError for too many tokens, before each of them is checked on its own."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"expected at most {MAX_BIASES} tokens")
    return value


class Servable(structured_outputs.Constrained):
    """Parses parameters that an engine may serve (`Facts.features`). If it does not serve one,
    only the value that changes nothing is accepted: the default."""

    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition = 1.0
    repeat_penalty: Repetition = 1.0
    """This is llama-server's name for `repetition_penalty`."""

    logit_bias: Annotated[
        dict[TokenId, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_few_biases)
    ] = Field(default_factory=dict)
    min_tokens: Annotated[Integer, Field(ge=0)] = 0
    ignore_eos: Flag = False
    stop_token_ids: Annotated[
        list[Annotated[Integer, Field(ge=0)]], Field(max_length=MAX_STOP_TOKENS)
    ] = Field(default_factory=list)
    prediction: PredictedOutput | None = None


SERVABLE: Final = tuple(
    name for name in Servable.__annotations__ if name not in {"repeat_penalty", "prediction"}
)
"""These parameters change the output, as `structured_outputs` does."""

_OTHER_NAMES: Final[Mapping[str, str]] = {
    "n_cmpl": "n",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}
"""Maps llama-server's names to ours. A request may have only one of the two names."""

_PENALTIES: Final = frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty"})

_SHOWABLE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_SHOWN: Final = 32


@dataclass(frozen=True, slots=True)
class Parameters:
    extras: Mapping[str, object]
    """These become Job.extras. Values are as parsed from JSON, except that the tokens of
    logit_bias are integers."""

    ignored: tuple[str, ...]
    """The fields with these names cannot change the output."""

    constrained_at: str = ""
    """The request has its constraint at this path; empty without a constraint."""


def parameters_of(body: Servable, facts: Facts) -> Parameters:
    """Return the parameters of a request beyond the settings that every engine serves. Raises
    InvalidRequest for a field that is not served."""
    ignored = _ignored(body.model_extra or {})
    salt = (body.model_extra or {}).get(SALT)
    if body.prediction is not None and "prediction" not in facts.features:
        ignored.append("prediction")
    extras = _adjustments(body, facts)
    _check_window(body.model_extra or {}, extras)
    _add_defaults(body, extras, facts)
    constrained_at, constraint = _constraint(body, facts)
    if constraint is not None:
        extras[structured_outputs.NAME] = constraint
    if isinstance(salt, str) and salt and SALT in facts.features:
        extras[SALT] = salt[:MAX_SALT]
        ignored.remove(SALT)
    ignored += body.unknown_inside()
    return Parameters(MappingProxyType(extras), tuple(ignored), constrained_at)


def shown_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a form for a header and the log: unique, short and few."""
    safe = (name if _SHOWABLE.fullmatch(name) else "?" for name in names)
    return tuple(dict.fromkeys(safe))[:MAX_SHOWN]


def _ignored(fields: Mapping[str, object]) -> list[str]:
    """Return the names of fields that no schema has and that cannot change the output. Raises
    InvalidRequest for a field that would."""
    if len(fields) > MAX_UNKNOWN:
        raise InvalidRequest(f"the body has more than {MAX_UNKNOWN} fields that are not known")
    for name, value in fields.items():
        if name in _OTHER_NAMES:
            raise _twice(name)
        if name in NEUTRAL and not is_neutral(value, NEUTRAL[name]):
            raise _unsupported(name)
    return [name for name in fields if name not in NEUTRAL]


def _adjustments(body: Servable, facts: Facts) -> dict[str, Any]:
    if {"repeat_penalty", "repetition_penalty"} <= body.model_fields_set:
        raise _twice("repeat_penalty")
    extras: dict[str, Any] = {}
    for name in (*SERVABLE, "repeat_penalty"):
        field, value = Servable.model_fields[name], getattr(body, name)
        if value != field.get_default(call_default_factory=True):
            meant = _OTHER_NAMES.get(name, name)
            _require(meant, facts, name)
            extras[meant] = value
    _check_tokens("logit_bias", [(str(t), t) for t in body.logit_bias], facts)
    _check_tokens(
        "stop_token_ids", [(str(i), t) for i, t in enumerate(body.stop_token_ids)], facts
    )
    if body.prediction is not None and "prediction" in facts.features:
        extras["prediction"] = text_of(body.prediction.content)
    return extras


def _constraint(
    body: Servable, facts: Facts
) -> tuple[str, structured_outputs.Constraint | None]:
    """Return the path of the request's constraint and the constraint; "" and None without."""
    field_and_constraint: tuple[str, structured_outputs.Constraint | None] = "", None
    for path, constraint in body.constraints():
        name = path.partition(".")[0]
        _require(structured_outputs.NAME, facts, name)
        if field_and_constraint[1] is not None:
            raise InvalidRequest.of(name, "only one field may constrain the output")
        field_and_constraint = path, constraint
    return field_and_constraint


def _check_window(fields: Mapping[str, object], extras: Mapping[str, object]) -> None:
    """Raise InvalidRequest for llama-server's window of the penalties if there is a penalty."""
    window = fields.get("repeat_last_n")
    if window not in (None, -1) and not extras.keys().isdisjoint(_PENALTIES):
        reason = "the penalties have no window; leave it out or give -1"
        raise Unsupported.of("repeat_last_n", reason)


def _add_defaults(body: Servable, extras: dict[str, Any], facts: Facts) -> None:
    """Add the model's own penalties that the request leaves out."""
    names = {_OTHER_NAMES.get(name, name) for name in body.model_fields_set}
    for name in (_PENALTIES - names) & facts.defaults.keys() & facts.features:
        if (default := facts.defaults[name]) != Servable.model_fields[name].default:
            extras[name] = default


def _check_tokens(name: str, tokens: Sequence[tuple[str, int]], facts: Facts) -> None:
    for place, token in tokens:
        if token >= facts.vocabulary_size:
            raise InvalidRequest(f"no such token: {token}", param=f"{name}.{place}")


def _require(feature: str, facts: Facts, name: str) -> None:
    if feature not in facts.features:
        raise _unsupported(name)


def _unsupported(name: str) -> InvalidRequest:
    return Unsupported(f"{name} is not supported by this model", param=name)


def _twice(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} means {_OTHER_NAMES[name]}: give one of them", param=name)


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
        return partial(
            Detokeniser,
            stop_tokens=stop_tokens.union(self.stop_token_ids),
            min_tokens=self.min_tokens,
            stops=self.stop,
            include_stop=self.include_stop_str_in_output,
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
