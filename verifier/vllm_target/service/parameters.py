"""From an Open to a request to vLLM: pure; what cannot be served is named by its field.

Temperature, min-p, top-k, top-p and logit_bias are applied by our judge, so vLLM's own stay
neutral. What is left to vLLM: penalties, minimum length, structured output, log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from speculation.protocol.messages import Limits, ModelFacts, Open
from verifier.target import Unservable
from verifier.vllm_target.admission import FIELD, Admission

FEATURES: Final = (
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "ignore_eos",
    "response_format",
)
"""OpenAI parameters served beyond Sampling."""

_RANGES: Final = {
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 2.0),
}
_BIAS: Final = 100.0
"""Largest bias, either way, as in the OpenAI API."""

MOST_BIASES: Final = 1024
"""Tokens in a logit_bias: each row of the session pays for them."""

T = TypeVar("T")


class _Schema(msgspec.Struct, frozen=True):
    schema: dict[str, Any]


class _Format(msgspec.Struct, frozen=True):
    type: str
    json_schema: _Schema | None = None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What vLLM's own request for a session is made of."""

    sampling: dict[str, Any]
    """Keywords of SamplingParams; `structured` holds those of StructuredOutputsParams."""

    structured: dict[str, Any] | None


def engine_request(session: str, request: Open, facts: ModelFacts) -> EngineRequest:
    """Return the request to vLLM for a session. Raises Unservable.

    The request was checked against `facts`, all but the values of its extras.
    """
    extras = request.sampling.extras
    if _value(extras, "ignore_eos", bool, False):
        request = replace(request, stop_tokens=())
    least = int(
        _within("min_tokens", _value(extras, "min_tokens", int, 0), 0, request.max_tokens)
    )
    sampling: dict[str, Any] = {
        "temperature": 1.0,
        "max_tokens": request.max_tokens - len(request.committed),
        "min_tokens": max(0, least - len(request.committed)),
        "stop_token_ids": list(request.stop_tokens),
        "ignore_eos": True,
        "logprobs": request.top_logprobs,
        "detokenize": False,
    }
    for name, (low, high) in _RANGES.items():
        if name in extras:
            sampling[name] = _within(name, _value(extras, name, float, 0.0), low, high)
    sampling["extra_args"] = {FIELD: _admission(session, request, facts).pack()}
    return EngineRequest(sampling, _structured(request))


def _admission(session: str, request: Open, facts: ModelFacts) -> Admission:
    bias = _value(request.sampling.extras, "logit_bias", dict[int, float], {})
    if len(bias) > MOST_BIASES:
        raise Unservable("sampling.extras.logit_bias", f"more than {MOST_BIASES} tokens")
    for token, value in bias.items():
        if not 0 <= token < facts.vocabulary_size:
            raise Unservable(f"sampling.extras.logit_bias.{token}", "not a token")
        _within(f"logit_bias.{token}", value, -_BIAS, _BIAS)
    return Admission(
        session,
        replace(request, sampling=msgspec.structs.replace(request.sampling, extras={})),
        len(request.prompt),
        Limits(facts.limits.max_verify, facts.limits.max_ahead),
        tuple(bias.items()),
        facts.vocabulary_size,
    )


def _structured(request: Open) -> dict[str, Any] | None:
    wanted = _value(request.sampling.extras, "response_format", _Format, _Format("text"))
    match wanted:
        case _Format("text", None):
            return None
        case _ if request.judge != "coupled":
            # a grammar drops draft tokens by their value: the rest would not have p
            raise Unservable("sampling.extras.response_format", "only in judge `coupled`")
        case _Format("json_object", None):
            return {"json_object": True}
        case _Format("json_schema", _Schema(schema=schema)):
            return {"json": schema}
    raise Unservable("sampling.extras.response_format", f"cannot serve type {wanted.type!r}")


def _value(extras: dict[str, msgspec.Raw], name: str, kind: type[T], default: T) -> T:
    if name not in extras:
        return default
    try:
        return msgspec.json.decode(extras[name], type=kind)
    except msgspec.MsgspecError as error:
        raise Unservable(f"sampling.extras.{name}", str(error)) from None


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise Unservable(f"sampling.extras.{name}", f"{value} is not in {low}..{high}")
    return value
