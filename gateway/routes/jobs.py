"""Turns a request into the jobs of its choices; whatever cannot be served is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.errors import InvalidRequest
from gateway.ports import SEEDS, Facts, Job
from gateway.routes.request import GenerationRequest, TokenIds


def check_choices(request: GenerationRequest, *, max_choices: int) -> None:
    """Raise InvalidRequest if the request asks for more than `max_choices` choices."""
    prompts = request.prompt_count
    if prompts * request.n > max_choices:
        raise InvalidRequest(
            f"{prompts} prompts times n = {request.n} exceeds {max_choices} choices",
            param="n" if prompts == 1 else "prompt",
        )


def plan_jobs(
    request: GenerationRequest,
    prompts: Sequence[TokenIds],
    facts: Facts,
    *,
    extras: Mapping[str, object],
    name: str,
    seed: int,
) -> list[Job]:
    """Return the jobs `name`-0, `name`-1, ...; choice i is seeded with seed + i.

    `extras`: see `parameters.check_extras`.
    """
    jobs: list[Job] = []
    for prompt in prompts:
        max_tokens = _max_tokens(request, prompt, facts)
        _check_min_tokens(extras, max_tokens)
        for _ in range(request.n):
            index = len(jobs)
            jobs.append(
                Job(
                    request_id=f"{name}-{index}",
                    prompt=prompt,
                    max_tokens=max_tokens,
                    sampling=request.sampling,
                    seed=(seed + index) % SEEDS,
                    top_logprobs=request.wanted_logprobs,
                    extras=extras,
                )
            )
    return jobs


def _max_tokens(request: GenerationRequest, prompt: TokenIds, facts: Facts) -> int:
    """Return how many tokens may be generated, or raise InvalidRequest if it does not fit."""
    _check_prompt(prompt, facts, request.prompt_field)
    room = facts.context_tokens - len(prompt)
    wanted = request.wanted_tokens
    if room < (wanted or 1):
        raise InvalidRequest(
            f"the context has {facts.context_tokens} tokens; the prompt takes {len(prompt)}"
            f" and the completion asks for {wanted or 1}",
            param=request.prompt_field,
            code="context_length_exceeded",
        )
    return wanted or min(room, request.default_tokens or room)


def _check_prompt(prompt: TokenIds, facts: Facts, field: str) -> None:
    if not prompt:
        raise InvalidRequest("the prompt is empty", param=field)
    if not 0 <= min(prompt) <= max(prompt) < facts.vocabulary_size:
        raise InvalidRequest(
            f"token ids must be from 0 to {facts.vocabulary_size - 1}", param=field
        )


def _check_min_tokens(extras: Mapping[str, object], max_tokens: int) -> None:
    least = extras.get("min_tokens")
    if isinstance(least, int) and least > max_tokens:
        raise InvalidRequest(f"min_tokens exceeds {max_tokens} tokens", param="min_tokens")
