"""Checks the parameters that some engines serve, and those that no engine serves.

A parameter that would change the output is never ignored. It gets a 400 that names it, unless
its value is neutral (`presence_penalty: 0`) or the engine serves it (`Facts.features`); a
served one is checked and passed on in `Job.extras`, under one name and in one form. A
parameter that cannot change the output is never an error; the answer names it in a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from gateway import structured_outputs
from gateway.answer_fields import NEUTRAL, is_neutral
from gateway.endpoints.messages_schema import PredictedOutput, text_of
from gateway.errors import InvalidRequest, Unsupported
from gateway.ports import Facts
from gateway.schema import Flag, Integer, Number
from speculation.request_names import SALT

Penalty = Annotated[Number, Field(ge=-2, le=2)]
Repetition = Annotated[Number, Field(ge=0.01, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]

MAX_BIASES: Final = 1024
"""A logit_bias has at most this many tokens: they cost time in each row of the session."""

MAX_CLIENT_STOP_TOKENS: Final = 64
"""A client gives at most this many stop tokens; an Open also has the model's own, and so a
higher limit."""

MAX_SALT: Final = 1024
"""At most this many characters of a cache salt count. It changes no answer."""

MAX_UNKNOWN: Final = 256
"""A body has at most this many fields that no schema has, or gets a 400; clients send ten."""


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
        list[Annotated[Integer, Field(ge=0)]], Field(max_length=MAX_CLIENT_STOP_TOKENS)
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
