"""Answers a request for choices: turns it into jobs, and streams them from the engine.

`count_prompt` only counts the tokens of the request's prompt.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from gateway import structured_outputs
from gateway.endpoints.answer import Heading
from gateway.endpoints.answerer import Complete, Ready, ask, choose
from gateway.endpoints.bodies import checked
from gateway.endpoints.endpoint import Body, Convert, EndpointRequest
from gateway.endpoints.request import GenerationRequest, TokenIds
from gateway.endpoints.sending import EventStream, json_answer
from gateway.endpoints.services import Json, Services
from gateway.errors import ClientGone, EngineFault, InvalidRequest, PromptTooLong, renamed
from gateway.http import json_response
from gateway.output.output_format import OutputFormat
from gateway.output.stream import stream_choice
from gateway.ports import SEEDS, Facts, Job
from gateway.prompt_reader import BoundedTokenizer
from gateway.request_context import context_of


def unchanged(fields: Json) -> Json:
    """Return the fields of a request that no other one is needed for."""
    return fields


async def generate(
    schema: type[Body],
    convert: Convert[Body],
    services: Services,
    request: Request,
    complete: Complete = unchanged,
) -> Response:
    """Return the answer of whoever is to give it. complete: see `choose`. Raises ApiError."""
    services.drain.check()
    context_of(request).begin_answers(1)  # before reading the body, to bound those on their way
    answerer = await choose(schema, convert, services, request, complete)
    if isinstance(answerer, Response):
        return answerer
    if isinstance(answerer, Ready):
        return await _answer(answerer, services, request)
    if services.proxy is None:
        raise EngineFault("there is no proxy")
    return await services.proxy.answer(answerer, services, request)


async def count_prompt(
    schema: type[Body],
    convert: Convert[Body],
    services: Services,
    request: Request,
    **more: str,
) -> Response:
    """Answer with the number of tokens in the prompt of an endpoint's request, which takes a
    thread and memory as an answer does, and counts as one. more: further fields of the answer.
    Raises ApiError."""
    context_of(request).begin_answers(1)
    question = await ask(schema, convert, services, request)
    source = await question.backend.tokenizer(question.facts.vocabulary)
    tokenizer = BoundedTokenizer(source, question.facts, question.endpoint.body.prompt_field)
    tokenise = partial(question.endpoint.body.tokenise, tokenizer)
    prompts = await services.reader.read(context_of(request).tenant, tokenise)
    return json_response({**more, "input_tokens": sum(map(len, prompts))})


async def _answer(ready: Ready, services: Services, request: Request) -> Response:
    """Generate the choices that a request asks for. Raises ApiError."""
    question, output_format = ready.question, ready.output_format
    context, endpoint, facts = context_of(request), question.endpoint, question.facts
    body, name = endpoint.body, f"{endpoint.id_prefix}{uuid.uuid4().hex}"
    jobs = await _jobs(ready, services, name, request)
    if isinstance(grammar := jobs[0].extras.get(structured_outputs.NAME), Mapping):
        path = renamed(question.parameters.constrained_at or "tools", endpoint.names)
        context.outcome.field_names = {
            **endpoint.names,
            **structured_outputs.names_of(path, grammar),
        }
    context.begin_answers(len(jobs) - 1)
    fingerprint = question.backend.begin(len(jobs), facts)
    answer = endpoint.answer(
        Heading(name, int(time.time()), facts.model, len(jobs), context.usage, fingerprint)
    )
    begin = question.backend.engine.generate
    streams = [
        stream_choice(
            index, begin(job), body.reader(output_format, job.prompt, facts.stop_tokens)
        )
        for index, job in enumerate(jobs)
    ]
    prompts = [job.prompt for job in jobs]
    show = partial(body.shown, streams, ready.tokenizer, prompts)
    streams = await checked(services, request, show)
    every_s = services.settings.keep_alive_s
    stream = EventStream(answer, streams, context, services.drain, every_s)
    if endpoint.in_background is not None:
        if await request.is_disconnected():
            raise ClientGone("the client went away before it knew of its answer")
        return endpoint.in_background(stream)
    if body.stream:
        return stream
    async with services.drain.answer():
        return await json_answer(answer, streams, context, request.receive)


async def _jobs(ready: Ready, services: Services, name: str, request: Request) -> list[Job]:
    """Return the jobs `name`-0, `name`-1, ...; the choices of a prompt get the seeds seed,
    seed + 1, ..."""
    question, prompts, context = ready.question, ready.prompts, context_of(request)
    body, facts, extras = question.endpoint.body, question.facts, question.parameters.extras
    constrain = partial(_constrained, body, ready.output_format, extras=extras)
    extras_of = await checked(services, request, lambda: [*map(constrain, prompts)])
    most = _most_tokens(question.endpoint)
    limits = [_max_tokens(body, prompt, facts, extras, most) for prompt in prompts]
    sampling = body.sampling(facts.defaults)
    seed = services.draw_seed() if body.seed is None else body.seed
    return [
        Job(
            request_id=f"{name}-{index}",
            prompt=prompts[index // body.n],
            max_tokens=limits[index // body.n],
            sampling=sampling,
            seed=(seed + index % body.n) % SEEDS,
            top_logprobs=body.wanted_logprobs,
            extras=extras_of[index // body.n],
            watched=body.is_watched,
            span=context.span,
            identity=facts.identity,
            owner=context.tenant,
            prompt_logprobs=body.wanted_prompt_logprobs,
        )
        for index in range(len(prompts) * body.n)
    ]


def _constrained(
    body: GenerationRequest,
    output_format: OutputFormat,
    prompt: TokenIds,
    extras: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the extras of a job, in which the constraint covers the whole answer; the same
    object if the answer is only content. Raises InvalidRequest."""
    content = extras.get(structured_outputs.NAME)
    mapping = content if isinstance(content, Mapping) else None
    constraint = body.constraint(output_format, prompt, mapping)
    more = body.more_extras(output_format, prompt)
    if constraint is mapping and not more:
        return extras
    constrained = {} if constraint is None else {structured_outputs.NAME: constraint}
    return MappingProxyType({**extras, **more, **constrained})


MAX_LOGPROBS: Final = 1 << 20
"""All choices of an answer have at most this many log-probabilities, those of the likeliest
included, and then end as at `max_tokens`: 8 choices of 6,241 tokens with 20 each. Their 60 MB
are joined within 50 ms."""


def _most_tokens(endpoint: EndpointRequest) -> int | None:
    """Return how many tokens of each choice have log-probabilities; None without a limit."""
    body = endpoint.body
    if (likeliest := body.wanted_logprobs) is None:
        return None
    repeated = body.n * body.prompt_count * endpoint.repeats
    return max(1, MAX_LOGPROBS // (repeated * (1 + likeliest)))


def _max_tokens(
    body: GenerationRequest,
    prompt: TokenIds,
    facts: Facts,
    extras: Mapping[str, object],
    own: int | None,
) -> int:
    """Return how many tokens may be generated, at most `own` and as many as the context has
    room for: coding agents always ask for more. Raises InvalidRequest if there is no room."""
    field = body.prompt_field
    if not prompt:
        raise InvalidRequest("the prompt is empty", param=field)
    if not 0 <= min(prompt) <= max(prompt) < facts.vocabulary_size:
        last = facts.vocabulary_size - 1
        raise InvalidRequest(f"token ids must be from 0 to {last}", param=field)
    room, wanted = facts.context_tokens - len(prompt), body.wanted_tokens
    if room < (wanted != 0):
        raise PromptTooLong(
            f"the context has {facts.context_tokens} tokens, the prompt takes {len(prompt)}",
            param=field,
            tokens=len(prompt),
            context_tokens=facts.context_tokens,
        )
    limits = (facts.defaults.get(name, room) for name in ("max_tokens", "most_tokens"))
    usual, most = map(int, limits)
    if wanted is None:
        wanted = body.usual_tokens or usual
    max_tokens = min(wanted, room, most, room if own is None else own)
    least = extras.get("min_tokens")
    if isinstance(least, int) and least > max_tokens:
        raise InvalidRequest(f"min_tokens exceeds {max_tokens} tokens", param="min_tokens")
    return max_tokens
