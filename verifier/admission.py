"""Checks an Open before any work is done for it. Each error names the field."""

from __future__ import annotations

from math import isfinite

from picospec.gateway.errors import ApiError, InvalidRequest, NotFound
from picospec.speculation.judges.judges import JUDGES
from picospec.speculation.protocol.messages import (
    MAX_PREDICTED,
    SPOKEN,
    ModelFacts,
    Open,
    Sampling,
)
from picospec.speculation.protocol.opening import STOPPING

MAX_STOP_TOKENS = 256
MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 2**31 - 1


class IdentityMismatch(ApiError):
    """The answer was begun by a verifier whose texts are not this one's."""

    status, type, code = 409, "invalid_request_error", "identity_mismatch"


class VocabularyMismatch(ApiError):
    """The edge has another tokenizer: its prompt would be another text."""

    status, type, code = 409, "invalid_request_error", "vocabulary_mismatch"


def check(request: Open, facts: ModelFacts) -> None:
    """Raise ApiError unless the target can serve this session."""
    if request.version not in SPOKEN or request.version < JUDGES[request.judge].since:
        raise InvalidRequest(
            f"version: this verifier judges `{request.judge}` by protocol {SPOKEN[-1]},"
            f" not {request.version}",
            param="version",
            code="unsupported_version",
        )
    names = (facts.model, *facts.adapters)
    if request.model not in names:
        message = f"the model {request.model!r} does not exist; this verifier has"
        known = ", ".join(map(repr, names))
        raise NotFound(f"{message} {known}", param="model", code="model_not_found")
    facts = facts.named(request.model)
    if request.vocabulary != facts.vocabulary:
        message = f"vocabulary: {request.vocabulary!r} is not the target's"
        raise VocabularyMismatch(f"{message} {facts.vocabulary!r}", param="vocabulary")
    if request.identity not in ("", facts.identity):
        message = f"identity: {request.identity!r} is not this verifier's {facts.identity!r}"
        raise IdentityMismatch(message, param="identity")
    _check_sizes(request, facts)  # before all tokens are read
    for field in ("prompt", "committed", "predicted", "stop_tokens"):
        if (highest := max(getattr(request, field), default=0)) >= facts.vocabulary_size:
            raise _invalid(field, f"{highest} is not a token")
    _check_sampling(request.sampling, facts)
    _check_judge(request, facts)


def _check_sizes(request: Open, facts: ModelFacts) -> None:
    if not request.prompt:
        raise _invalid("prompt", "empty")
    if request.max_tokens < 1:
        raise _invalid("max_tokens", "at least 1")
    if len(request.prompt) + request.max_tokens > facts.context_tokens:
        raise InvalidRequest(
            f"the context has {facts.context_tokens} tokens; the prompt takes"
            f" {len(request.prompt)} and the answer may take {request.max_tokens}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    if len(request.stop_tokens) > MAX_STOP_TOKENS:
        raise _invalid("stop_tokens", f"at most {MAX_STOP_TOKENS}")
    if len(request.predicted) > MAX_PREDICTED:
        raise _invalid("predicted", f"at most {MAX_PREDICTED} tokens")
    if len(request.committed) >= request.max_tokens:
        raise _invalid("committed", f"all {request.max_tokens} tokens of the answer are there")
    if set(request.stop_tokens).intersection(request.committed):
        raise _invalid("committed", "a stop token has ended the answer")


def _check_sampling(sampling: Sampling, facts: ModelFacts) -> None:
    allowed = {
        "temperature": 0.0 <= sampling.temperature <= MAX_TEMPERATURE,
        "min_p": 0.0 <= sampling.min_p <= 1.0,
        "top_k": 0 <= sampling.top_k <= MAX_TOP_K,
        "top_p": 0.0 < sampling.top_p <= 1.0,
    }
    for field, is_allowed in allowed.items():
        value = getattr(sampling, field)
        if not (is_allowed and isfinite(value)):
            raise _invalid(f"sampling.{field}", f"{value} is out of range")
    for name in sampling.extras:
        if name in STOPPING:
            raise _invalid(f"sampling.extras.{name}", "stop_tokens must say it")
        if name not in facts.features:
            raise _invalid(f"sampling.extras.{name}", "not supported by this target")


def _check_judge(request: Open, facts: ModelFacts) -> None:
    if request.judge not in facts.judges:
        raise _invalid("judge", f"this target judges {', '.join(facts.judges)}")
    judge = JUDGES[request.judge]
    if request.own_drafts and not judge.takes_any_draft:
        raise _invalid("own_drafts", f"not in judge `{request.judge}`")
    if request.rejected and judge.takes_any_draft:
        raise _invalid("rejected", f"not in judge `{request.judge}`")
    if request.rejected and len(request.committed) + 2 > request.max_tokens:
        raise _invalid("rejected", "no draft token is judged at the answer's last position")
    if request.top_logprobs is None:
        return
    if request.top_logprobs > MAX_TOP_LOGPROBS:
        raise _invalid("top_logprobs", f"at most {MAX_TOP_LOGPROBS}")
    if not judge.has_logprobs:
        raise _invalid("top_logprobs", f"not in judge `{request.judge}`")


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", param=field)
