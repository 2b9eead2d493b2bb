"""Parameters beyond those of the schemas: each is harmless, neutral, served, or refused.

A parameter that would change the output is never ignored. It is refused with a 400 that names
it, unless its value changes nothing (`presence_penalty: 0`) or the engine serves it
(`Facts.features`); then it is checked and passed on in `Job.extras`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from gateway.errors import InvalidRequest
from gateway.ports import Facts
from gateway.validation import invalid


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[dict[str, object], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


Penalty = Annotated[float, Strict(), Field(ge=-2, le=2, allow_inf_nan=False)]
Repetition = Annotated[float, Strict(), Field(gt=0, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Strict(), Field(ge=-100, le=100, allow_inf_nan=False)]

_SERVABLE: Final[Mapping[str, TypeAdapter[Any]]] = MappingProxyType(
    {
        "presence_penalty": TypeAdapter(Penalty),
        "frequency_penalty": TypeAdapter(Penalty),
        "repetition_penalty": TypeAdapter(Repetition),
        "logit_bias": TypeAdapter(dict[Annotated[int, Field(ge=0)], Bias]),
        "response_format": TypeAdapter(_ResponseFormat),
        "min_tokens": TypeAdapter(Annotated[int, Strict(), Field(ge=0)]),
        "ignore_eos": TypeAdapter(Annotated[bool, Strict()]),
    }
)
"""What an engine may serve, with the check of its value."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "logit_bias": ({},),
        "response_format": ({"type": "text"},),
        "min_tokens": (0,),
        "ignore_eos": (False,),
        "tools": ([],),
        "tool_choice": ("none",),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "verbosity": (),
        "reasoning_effort": (),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "moderation": (),
        "echo": (False,),
        "best_of": (1,),
        "suffix": (),
    }
)
"""Known parameters that can change the output, with the values that do not."""

_HARMLESS: Final = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)


def extras(given: Mapping[str, object], facts: Facts) -> Mapping[str, object]:
    """Return what the engine must be told; InvalidRequest for what it does not serve.

    Values are as JSON gave them, but for logit_bias: {token: bias} with integer tokens.
    """
    told = {}
    for name, value in given.items():
        if name in _HARMLESS or _is_neutral(name, value):
            continue
        _refuse_unserved(name, facts)
        told[name] = _checked(name, value, facts)
    return MappingProxyType(told)


def _is_neutral(name: str, value: object) -> bool:
    """Equal and of the same kind: `false` is no penalty of 0."""
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in _NEUTRAL.get(name, ())
    )


def _refuse_unserved(name: str, facts: Facts) -> None:
    if name in _SERVABLE and name in facts.features:
        return
    if name in _NEUTRAL:
        message, code = f"{name} is not supported by this model", "unsupported_parameter"
    else:
        message, code = f"unknown parameter: {name}", "unknown_parameter"
    raise InvalidRequest(message, param=name, code=code)


def _checked(name: str, value: object, facts: Facts) -> object:
    try:
        checked = _SERVABLE[name].validate_python(value)
    except ValidationError as error:
        raise invalid(error, under=name) from None
    if name == "logit_bias":
        _check_tokens(checked, facts)
        return checked
    if name == "response_format":
        _check_schema(checked)
        return value
    return checked


def _check_tokens(bias: Mapping[int, float], facts: Facts) -> None:
    for token in bias:
        if token >= facts.vocabulary_size:
            raise InvalidRequest(f"no such token: {token}", param=f"logit_bias.{token}")


def _check_schema(wanted: _ResponseFormat) -> None:
    if (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise InvalidRequest(
            "json_schema goes with the type json_schema, and only with it",
            param="response_format.json_schema",
        )
