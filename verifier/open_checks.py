"""Checks an Open before any work is done for it. Each error names the field."""

from __future__ import annotations

from math import isfinite

from gateway.errors import ApiError, InvalidRequest, NotFound
from speculation.judges import JUDGES
from speculation.messages import MAX_PREDICTED, Open, Sampling
from speculation.model_facts import (
    MAX_STOP_TOKENS,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MAX_TOP_LOGPROBS,
    PROTOCOL_VERSION,
    ModelFacts,
)
from speculation.request_names import PROMPT_LOGPROBS, STOPPING


class IdentityMismatch(ApiError):
    """A verifier with another identity began the answer, so this one cannot continue it."""

    status, type, code = 409, "invalid_request_error", "identity_mismatch"


class VocabularyMismatch(ApiError):
    """The edge has another tokenizer: its token ids would stand for another text here."""

    status, type, code = 409, "invalid_request_error", "vocabulary_mismatch"


def check_open(request: Open, facts: ModelFacts) -> None:
    """Raise ApiError unless the target can serve this session."""
    if request.version != PROTOCOL_VERSION:
        raise InvalidRequest(
            f"version: this verifier speaks protocol {PROTOCOL_VERSION}, not {request.version}",
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
    for named_field in ("prompt", "committed", "predicted", "stop_tokens"):
        highest = max(getattr(request, named_field), default=0)
        _require(highest < facts.vocabulary_size, named_field, f"{highest} is not a token")
    _check_sampling(request.sampling, facts)
    _check_judge(request, facts)


def _check_sizes(request: Open, facts: ModelFacts) -> None:
    most, stops = request.max_tokens, request.stop_tokens
    _require(request.prompt, "prompt", "empty")
    _require(most >= 1, "max_tokens", "at least 1")
    if len(request.prompt) + most > facts.context_tokens:
        raise InvalidRequest(
            f"the context has {facts.context_tokens} tokens; the prompt takes"
            f" {len(request.prompt)} and the answer may take {most}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    _require(len(stops) <= MAX_STOP_TOKENS, "stop_tokens", f"at most {MAX_STOP_TOKENS}")
    few = len(request.predicted) <= MAX_PREDICTED
    _require(few, "predicted", f"at most {MAX_PREDICTED} tokens")
    goes_on = len(request.committed) < most
    _require(goes_on, "committed", f"all {most} tokens of the answer are there")
    ended = set(stops).intersection(request.committed)
    _require(not ended, "committed", "a stop token has ended the answer")


def _check_sampling(sampling: Sampling, facts: ModelFacts) -> None:
    allowed = {
        "temperature": 0.0 <= sampling.temperature <= MAX_TEMPERATURE,
        "min_p": 0.0 <= sampling.min_p <= 1.0,
        "top_k": 0 <= sampling.top_k <= MAX_TOP_K,
        "top_p": 0.0 < sampling.top_p <= 1.0,
    }
    for named_field, is_allowed in allowed.items():
        value = getattr(sampling, named_field)
        in_range = is_allowed and isfinite(value)
        _require(in_range, f"sampling.{named_field}", f"{value} is out of range")
    for name in sampling.extras:
        named_field = f"sampling.extras.{name}"
        _require(name not in STOPPING, named_field, "stop_tokens must say it")
        served = name in facts.features and name != PROMPT_LOGPROBS
        _require(served, named_field, "not supported by this target")


def _check_judge(request: Open, facts: ModelFacts) -> None:
    has_judge = request.judge in facts.judges
    _require(has_judge, "judge", f"this target judges {', '.join(facts.judges)}")
    judge, not_in = JUDGES[request.judge], f"not in judge `{request.judge}`"
    _require(judge.takes_any_draft or not request.ngram_drafts, "ngram_drafts", not_in)
    if request.rejected:
        _require(not judge.takes_any_draft, "rejected", not_in)
        has_room = len(request.committed) + 2 <= request.max_tokens
        _require(has_room, "rejected", "no draft token is judged at the answer's last position")
    if (top_logprobs := request.top_logprobs) is not None:
        _require(
            top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"at most {MAX_TOP_LOGPROBS}"
        )
        _require(judge.has_logprobs, "top_logprobs", not_in)


def _require(holds: object, named_field: str, reason: str) -> None:
    """Raise an InvalidRequest that names the field, unless the condition holds."""
    if not holds:
        raise InvalidRequest(f"{named_field}: {reason}", param=named_field)
