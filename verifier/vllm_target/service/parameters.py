"""From an Open to a request to vLLM: pure; what cannot be served is named by its field.

Whatever changes a distribution is applied by our judge, so vLLM's own settings stay neutral.
What is left to vLLM: structured output and log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from speculation.protocol.messages import Limits, ModelFacts, Open
from speculation.protocol.opening import STOPPING
from speculation.sampling.logit_settings import LOGIT_SETTINGS, LogitSettings
from verifier.target import Unservable, unservable
from verifier.vllm_target.admission import FIELD, Admission

FEATURES: Final = (*LOGIT_SETTINGS, *STOPPING, "structured_outputs")
"""OpenAI parameters served beyond Sampling."""

T = TypeVar("T")


class _Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of these is set; vLLM names them so, too."""

    json: dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


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
    sampling: dict[str, Any] = {
        "temperature": 1.0,
        "max_tokens": request.max_tokens,
        "stop_token_ids": list(request.stop_tokens),
        "ignore_eos": True,
        "logprobs": request.top_logprobs,
        "detokenize": False,
    }
    sampling["extra_args"] = {FIELD: _admission(session, request, facts).pack()}
    return EngineRequest(sampling, _structured(request))


def _admission(session: str, request: Open, facts: ModelFacts) -> Admission:
    with unservable():
        settings = LogitSettings.of(request, vocabulary_size=facts.vocabulary_size)
    return Admission(
        session,
        replace(request, sampling=msgspec.structs.replace(request.sampling, extras={})),
        len(request.prompt),
        Limits(facts.limits.max_verify, facts.limits.max_ahead),
        settings,
        facts.vocabulary_size,
    )


def _structured(request: Open) -> dict[str, Any] | None:
    name = "structured_outputs"
    if name not in request.sampling.extras:
        return None
    if request.judge != "coupled":
        # a grammar drops draft tokens by their value: the rest would not have p
        raise Unservable(f"sampling.extras.{name}", "only in judge `coupled`")
    wanted = msgspec.structs.asdict(
        _value(request.sampling.extras, name, _Constraint, _Constraint())
    )
    given = {kind: value for kind, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise Unservable(f"sampling.extras.{name}", "not exactly one constraint")
    return given


def _value(extras: dict[str, msgspec.Raw], name: str, kind: type[T], default: T) -> T:
    if name not in extras:
        return default
    try:
        return msgspec.json.decode(extras[name], type=kind)
    except msgspec.MsgspecError as error:
        raise Unservable(f"sampling.extras.{name}", str(error)) from None
