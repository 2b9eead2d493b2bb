"""Checks the parameters that the schemas do not have.

A parameter that would change the output is never ignored. It gets a 400 that names it, unless
its value is neutral (`presence_penalty: 0`) or the engine serves it (`Facts.features`); in that
case it is checked and passed on in `Job.extras`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from gateway.errors import InvalidRequest
from gateway.ports import Facts
from gateway.routes.request import Flag, Integer, Number, StrictModel, invalid


class _JsonSchema(StrictModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, object], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


Penalty = Annotated[Number, Field(ge=-2, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]

SERVABLE: Final[Mapping[str, TypeAdapter[Any]]] = {
    "presence_penalty": TypeAdapter(Penalty),
    "frequency_penalty": TypeAdapter(Penalty),
    "repetition_penalty": TypeAdapter(Annotated[Number, Field(gt=0, le=2)]),
    "logit_bias": TypeAdapter(dict[Annotated[int, Field(ge=0)], Bias]),
    "response_format": TypeAdapter(_ResponseFormat),
    "min_tokens": TypeAdapter(Annotated[Integer, Field(ge=0)]),
    "ignore_eos": TypeAdapter(Flag),
}
"""Parameters that an engine may serve, with the checks of their values."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens"), (0,)),
    **dict.fromkeys(("repetition_penalty", "best_of"), (1,)),
    **dict.fromkeys(("ignore_eos", "store", "echo"), (False,)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none",)),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    **dict.fromkeys(("audio", "moderation", "prediction", "reasoning_effort"), ()),
    **dict.fromkeys(("suffix", "verbosity", "web_search_options"), ()),
}
"""Known parameters that can change the output, each with the values at which it does not."""

_PROMPT_CACHE = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
_HARMLESS: Final = frozenset(
    {"metadata", "parallel_tool_calls", "safety_identifier", "user", *_PROMPT_CACHE}
)
"""Known parameters that never change the output."""


def check_extras(given: Mapping[str, object], facts: Facts) -> Mapping[str, object]:
    """Return Job.extras; raise InvalidRequest for a parameter that the engine does not serve.

    Values are as JSON gave them, except that the tokens of logit_bias are integers.
    """
    extras = {}
    for name, value in given.items():
        if name in _HARMLESS or _is_neutral(name, value):
            continue
        _check_served(name, facts)
        extras[name] = _checked(name, value, facts)
    return MappingProxyType(extras)


def _is_neutral(name: str, value: object) -> bool:
    """Tell whether a value is equal to a neutral one, where `false` does not count as 0."""
    neutral = _NEUTRAL.get(name, ())
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)


def _check_served(name: str, facts: Facts) -> None:
    if name in SERVABLE and name in facts.features:
        return
    if name in _NEUTRAL:
        message = f"{name} is not supported by this model"
        raise InvalidRequest(message, param=name, code="unsupported_parameter")
    raise InvalidRequest(f"unknown parameter: {name}", param=name, code="unknown_parameter")


def _checked(name: str, value: object, facts: Facts) -> object:
    try:
        checked = SERVABLE[name].validate_python(value)
    except ValidationError as error:
        raise invalid(error, under=name) from None
    if name == "logit_bias":
        for token in checked:
            if token >= facts.vocabulary_size:
                raise InvalidRequest(f"no such token: {token}", param=f"logit_bias.{token}")
    if name != "response_format":
        return checked
    if (checked.type == "json_schema") != (checked.json_schema is not None):
        raise InvalidRequest(
            "json_schema goes with the type json_schema, and only with it",
            param="response_format.json_schema",
        )
    return value
