"""From a request to the jobs it asks for. Everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import InvalidRequest, NotFound
from gateway.ports import Facts, Job, Message, Sampling, Tokenizer
from gateway.schemas import ChatRequest, CompletionRequest

SEEDS: Final = 2**63
_COMPLETION_TOKENS: Final = 16  # OpenAI's default for /v1/completions

Prompt = tuple[int, ...]
Request = ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class Plan:
    jobs: tuple[Job, ...]
    """Choice i of the answer comes from jobs[i]."""

    prompt_tokens: int
    """Each prompt counted once, however many choices it has."""

    stops: tuple[str, ...]


def check_model(model: str, facts: Facts) -> None:
    """Raise NotFound for any model but the engine's."""
    if model != facts.model:
        message = f"the model {model!r} does not exist; this service has {facts.model!r}"
        raise NotFound(message, param="model", code="model_not_found")


def chat_prompts(request: ChatRequest, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """Render the conversation. The developer role is OpenAI's other name for system."""
    messages = [
        Message("system" if message.role == "developer" else message.role, message.text)
        for message in request.messages
    ]
    try:
        return (tuple(tokenizer.chat(messages)),)
    except ValueError as error:
        raise InvalidRequest(f"messages: {error}", param="messages") from error


def completion_prompts(request: CompletionRequest, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """Tokenise the prompts that are text."""
    return tuple(
        tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
        for prompt in request.prompt
    )


def check_count(request: Request, *, max_choices: int) -> None:
    """Reject more choices at once than one request may have."""
    prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
    if prompts * request.n > max_choices:
        raise InvalidRequest(
            f"{prompts} prompts times n = {request.n} exceeds {max_choices} choices",
            param="n" if prompts == 1 else "prompt",
        )


def plan(
    request: Request,
    prompts: tuple[Prompt, ...],
    facts: Facts,
    *,
    told: Mapping[str, object],
    name: str,
    seed: int,
) -> Plan:
    """Return the jobs, `name`-0, `name`-1, ...; choice i is seeded with seed + i.

    `told`: see `parameters.extras`.
    """
    jobs: list[Job] = []
    for prompt in prompts:
        max_tokens = _room(request, prompt, facts)
        _check_min_tokens(told, max_tokens)
        for _ in range(request.n):
            index = len(jobs)
            jobs.append(
                Job(
                    request_id=f"{name}-{index}",
                    prompt=prompt,
                    max_tokens=max_tokens,
                    sampling=_sampling(request),
                    seed=(seed + index) % SEEDS,
                    top_logprobs=request.wanted_logprobs,
                    extras=told,
                )
            )
    return Plan(tuple(jobs), sum(map(len, prompts)), request.stop)


def _room(request: Request, prompt: Prompt, facts: Facts) -> int:
    """Return how many tokens may be generated; refuse what does not fit the context."""
    field = "messages" if isinstance(request, ChatRequest) else "prompt"
    _check_tokens(prompt, facts, field)
    room = facts.context_tokens - len(prompt)
    wanted = request.wanted_tokens
    if room < (wanted or 1):
        raise InvalidRequest(
            f"the context has {facts.context_tokens} tokens; the prompt takes {len(prompt)}"
            f" and the completion asks for {wanted or 1}",
            param=field,
            code="context_length_exceeded",
        )
    if wanted is None and isinstance(request, CompletionRequest):
        return min(room, _COMPLETION_TOKENS)
    return wanted or room


def _check_tokens(prompt: Prompt, facts: Facts, field: str) -> None:
    if not prompt:
        raise InvalidRequest("the prompt is empty", param=field)
    if not 0 <= min(prompt) <= max(prompt) < facts.vocabulary_size:
        raise InvalidRequest(
            f"token ids must be from 0 to {facts.vocabulary_size - 1}", param=field
        )


def _check_min_tokens(told: Mapping[str, object], max_tokens: int) -> None:
    least = told.get("min_tokens", 0)
    if isinstance(least, int) and least > max_tokens:
        raise InvalidRequest(f"min_tokens exceeds {max_tokens} tokens", param="min_tokens")


def _sampling(request: Request) -> Sampling:
    return Sampling(
        temperature=request.temperature,
        min_p=request.min_p,
        top_k=max(request.top_k, 0),
        top_p=request.top_p,
    )
