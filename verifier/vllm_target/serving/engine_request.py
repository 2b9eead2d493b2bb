"""Translates an Open into a request to vLLM, without I/O. An error names the field.

vLLM always applies structured output and computes log-probabilities. On Model Runner V2 its
sampler draws a session's tokens, and applies all settings that change a distribution. On V1
our judge applies them, and vLLM's own settings are neutral.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from local_models.constraints import Constraint
from speculation.answer_cache import Owner
from speculation.logit_settings import LogitSettings
from speculation.messages import Open, Sampling
from speculation.model_facts import Limits, ModelFacts
from verifier.target import (
    asked_grammar,
    unservable,
)
from verifier.vllm_target.ipc_messages import FIELD, Admission

if TYPE_CHECKING:
    pass


def engine_request(
    session: str,
    request: Open,
    facts: ModelFacts,
    *,
    drawn_by_vllm: bool = False,
    owner: Owner | None = None,
) -> dict[str, Any]:
    """Return vLLM's request for a session as keywords of SamplingParams, of which one is a dict
    of keywords of StructuredOutputsParams or None. Raises Unservable.

    owner: whose earlier answers the session may draft from. The request was checked against
    `facts`, except for the values of its extras.
    """
    with unservable():
        settings = LogitSettings.of(request, vocabulary_size=facts.vocabulary_size)
    known = 0 if drawn_by_vllm else len(request.committed)
    sampling: dict[str, Any] = {
        "temperature": 1.0,
        "max_tokens": request.max_tokens - known,
        "stop_token_ids": list(request.stop_tokens),
        "ignore_eos": True,
        "logprobs": request.top_logprobs,
        "detokenize": False,
    }
    left = msgspec.structs.replace(request.sampling, extras={})
    if drawn_by_vllm:
        sampling |= _settings(request, settings)
        left, settings = Sampling(float(left.temperature > 0.0)), LogitSettings()
    admission = Admission(
        session,
        replace(request, sampling=left),
        len(request.prompt),
        Limits(facts.limits.max_verify, facts.limits.max_ahead),
        settings,
        facts.vocabulary_size,
        drawn_by_vllm,
        owner,
    )
    sampling |= {"extra_args": {FIELD: admission.pack()}, "structured_outputs": None}
    if (grammar := asked_grammar(request)) is not None:
        with unservable():
            constraint = Constraint.of(grammar)
        sampling["structured_outputs"] = {constraint.kind: constraint.value}
    return sampling


def _settings(request: Open, settings: LogitSettings) -> dict[str, Any]:
    """Return the keywords of SamplingParams that shape the distributions."""
    shape = msgspec.structs.asdict(request.sampling) | msgspec.structs.asdict(settings)
    del shape["extras"]
    seed = request.seed - (request.seed >> 63 << 64)  # vLLM takes the same 64 bits signed
    return shape | {"seed": seed}
