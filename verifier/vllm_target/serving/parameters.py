"""From an Open to a request to vLLM: pure; what cannot be served is named by its field.

Whatever changes a distribution is applied by our judge, so vLLM's own settings stay neutral.
What is left to vLLM: structured output and log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from picospec.models.grammars.constraint import NAME, Constraint
from picospec.speculation.protocol.messages import Limits, ModelFacts, Open
from picospec.speculation.protocol.opening import SALT, STOPPING
from picospec.speculation.sampling.logit_settings import LOGIT_SETTINGS, LogitSettings
from picospec.verifier.target import asked_grammar, unservable
from picospec.verifier.vllm_target.admission import FIELD, Admission

FEATURES: Final = (*LOGIT_SETTINGS, *STOPPING, NAME, SALT)
"""OpenAI parameters served beyond Sampling."""


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
        "max_tokens": request.max_tokens - len(request.committed),
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
    if (asked := asked_grammar(request)) is None:
        return None
    with unservable():
        constraint = Constraint.of(asked)
    return {constraint.kind: constraint.value}
