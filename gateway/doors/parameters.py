"""Checks the parameters that the schemas do not have.

A parameter that would change the output is never ignored. It gets a 400 that names it, unless
its value is neutral (`presence_penalty: 0`) or the engine serves it (`Facts.features`); in that
case it is checked and passed on in `Job.extras`, by one name and in one form. A parameter that
cannot change the output is never an error; the answer names it in a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from picospec.gateway.errors import InvalidRequest
from picospec.gateway.grammars import structured
from picospec.gateway.ports import Facts
from picospec.gateway.schemas.base import Flag, Integer, Number, invalid
from picospec.gateway.schemas.known import NEUTRAL, is_neutral
from picospec.gateway.schemas.messages import Prediction, text_of

Penalty = Annotated[Number, Field(ge=-2, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]

MAX_BIASES: Final = 1024
"""The limit of tokens in a logit_bias: each row of the session pays for them."""

MAX_STOP_TOKENS: Final = 64

MAX_UNKNOWN: Final = 256
"""The limit of fields that no schema has, in the body itself; clients send about ten."""


def _few_biases(value: object) -> object:
    """Raise for too many before each of them is checked, and gets an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"expected at most {MAX_BIASES} tokens")
    return value


SERVABLE: Final[Mapping[str, TypeAdapter[Any]]] = {
    "presence_penalty": TypeAdapter(Penalty),
    "frequency_penalty": TypeAdapter(Penalty),
    "repetition_penalty": TypeAdapter(Annotated[Number, Field(ge=0.01, le=2)]),
    "logit_bias": TypeAdapter(
        Annotated[
            dict[TokenId, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_few_biases)
        ]
    ),
    "min_tokens": TypeAdapter(Annotated[Integer, Field(ge=0)]),
    "ignore_eos": TypeAdapter(Flag),
    "stop_token_ids": TypeAdapter(
        Annotated[list[Annotated[Integer, Field(ge=0)]], Field(max_length=MAX_STOP_TOKENS)]
    ),
}
"""Parameters that an engine may serve, with the checks of their values. It may also serve
`structured_outputs`, to which all fields of `structured.FIELDS` lead, and `prediction`."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **NEUTRAL,
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens"), (0,)),
    "repetition_penalty": (1,),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "stop_token_ids": ([],),
    "grammar": ("",),
}

_OTHER_NAMES: Final[Mapping[str, str]] = {
    "n_cmpl": "n",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}
"""llama-server's names. The schema reads the first two; what it left was given twice."""

_PREDICTION: Final = TypeAdapter(Prediction)
PARAMETERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    **SERVABLE,
    **structured.ADAPTERS,
    "prediction": _PREDICTION,
}
"""All of them, with the checks of their values."""

_PENALTIES: Final = frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty"})


_SHOWABLE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_SHOWN: Final = 32


@dataclass(frozen=True, slots=True)
class Parameters:
    extras: Mapping[str, object]
    """Job.extras. Values are as JSON gave them, but the tokens of logit_bias are integers."""

    ignored: tuple[str, ...]
    """The names of the fields that cannot change the output."""

    constrained_at: str = ""
    """Where in the request the constraint is."""

    stop_tokens: frozenset[int] = frozenset()
    """The tokens that end this answer besides the model's own."""

    min_tokens: int = 0
    """Before so many tokens nothing ends it."""


def check_parameters(given: Mapping[str, object], facts: Facts) -> Parameters:
    """Check the fields that no schema has. Raises InvalidRequest for one that is not served."""
    if len(given) > MAX_UNKNOWN:
        raise InvalidRequest(f"the body has more than {MAX_UNKNOWN} fields that are not known")
    extras: dict[str, Any] = {}
    ignored: list[str] = []
    constrained_at = ""
    for name, value in given.items():
        meant = _one_name(name, given)
        if is_neutral(value, _NEUTRAL.get(meant, ())):
            continue
        if name in structured.FIELDS:
            ignored += _constrain(extras, name, value, facts)
            if not constrained_at and structured.NAME in extras:
                constrained_at = structured.path_of(name, value, extras[structured.NAME])
        elif meant in SERVABLE:
            _require(meant, facts, name)
            extras[meant] = _checked(meant, value, facts, name)
        elif name == "prediction" and name in facts.features:
            extras[name] = _predicted(value)
        elif name in NEUTRAL:
            raise _unsupported(name)
        else:
            ignored.append(name)
    _check_window(given, extras)
    _add_defaults(given, extras, facts)
    stop_tokens = frozenset(extras.get("stop_token_ids", ()))
    return Parameters(
        MappingProxyType(extras),
        tuple(ignored),
        constrained_at,
        stop_tokens,
        extras.get("min_tokens", 0),
    )


def shown_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a header and the log may show them: once each, short and few."""
    safe = (name if _SHOWABLE.fullmatch(name) else "?" for name in names)
    return tuple(dict.fromkeys(safe))[:MAX_SHOWN]


def _predicted(value: object) -> str:
    """Return the text that the client expects. It changes no answer, only its speed."""
    try:
        return text_of(_PREDICTION.validate_python(value).content)
    except ValidationError as error:
        raise invalid(error, under="prediction") from None


def _one_name(name: str, given: Mapping[str, object]) -> str:
    meant = _OTHER_NAMES.get(name, name)
    if meant != name and (meant in given or meant not in SERVABLE):
        raise InvalidRequest(f"{name} means {meant}: give one of them", param=name)
    return meant


def _constrain(extras: dict[str, Any], name: str, value: object, facts: Facts) -> list[str]:
    """Put the constraint that a field asks for into `extras`; return what it ignored."""
    constraint, ignored = structured.constraint_of(name, value)
    if constraint is None:
        return ignored
    _require(structured.NAME, facts, name)
    if structured.NAME in extras:
        raise InvalidRequest(f"{name}: only one field may constrain the output", param=name)
    extras[structured.NAME] = constraint
    return ignored


def _check_window(given: Mapping[str, object], extras: Mapping[str, object]) -> None:
    """Let llama-server's window of the penalties pass where there is no penalty."""
    window = given.get("repeat_last_n")
    if window not in (None, -1) and not extras.keys().isdisjoint(_PENALTIES):
        raise InvalidRequest(
            "repeat_last_n: the penalties have no window; leave it out or give -1",
            param="repeat_last_n",
            code="unsupported_parameter",
        )


def _add_defaults(given: Mapping[str, object], extras: dict[str, Any], facts: Facts) -> None:
    """Add the model's own penalties that the request leaves out."""
    asked = {_OTHER_NAMES.get(name, name) for name in given}
    for name in (_PENALTIES - asked) & facts.defaults.keys() & facts.features:
        if not is_neutral(default := facts.defaults[name], _NEUTRAL[name]):
            extras[name] = default


def _require(feature: str, facts: Facts, name: str) -> None:
    if feature not in facts.features:
        raise _unsupported(name)


def _unsupported(name: str) -> InvalidRequest:
    message = f"{name} is not supported by this model"
    return InvalidRequest(message, param=name, code="unsupported_parameter")


def _checked(meant: str, value: object, facts: Facts, name: str) -> object:
    try:
        checked = SERVABLE[meant].validate_python(value)
    except ValidationError as error:
        raise invalid(error, under=name) from None
    if meant in ("logit_bias", "stop_token_ids"):
        for index, token in enumerate(checked):
            if token >= facts.vocabulary_size:
                place = token if meant == "logit_bias" else index
                raise InvalidRequest(f"no such token: {token}", param=f"{name}.{place}")
    return checked
