"""Answers a request for choices: turns it into jobs, and streams them from the engine.

`count_prompt` only counts the tokens of the request's prompt.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from gateway import grammars
from gateway.endpoints.endpoint import (
    Body,
    Convert,
    EndpointRequest,
    EventStream,
    Heading,
    json_answer,
)
from gateway.endpoints.request import (
    GenerationRequest,
    Parameters,
    TokenIds,
    parameters_of,
    shown_names,
)
from gateway.endpoints.services import Backend, Services
from gateway.errors import (
    UNSUPPORTED,
    ApiError,
    ClientGone,
    InvalidRequest,
    PromptTooLong,
    renamed,
)
from gateway.http import json_response, read_body
from gateway.output.output_format import OutputFormat
from gateway.output.stream import stream_choice
from gateway.ports import SEEDS, Facts, GatewayTokenizer, Job
from gateway.request_context import RequestContext, context_of
from gateway.schema import SMALL_BYTES, Values, invalid
from gateway.turns import BoundedTokenizer

# Reads and checks the bodies of requests: large ones in a thread, one after the other.

Parsed = TypeVar("Parsed", bound=BaseModel)
T = TypeVar("T")

MIN_LIMIT_BYTES: Final = 1 << 20
"""Bodies have this limit if the context is short, or its length is unknown."""

BYTES_PER_TOKEN: Final = 32
"""The limit of bodies is this for each token of the context. In JSON a token has about 5 bytes,
and as escapes of UTF-16 about 12; the rest is room for the structure around the texts."""


def body_limit_bytes(context_tokens: int) -> int:
    """Return the limit of a body's bytes for a context of this length."""
    return max(MIN_LIMIT_BYTES, context_tokens * BYTES_PER_TOKEN)


async def parse(
    schema: type[Parsed], services: Services, request: Request, least_bytes: int = 0
) -> Parsed:
    """Return the JSON body of a request. Raises InvalidRequest, or what `read_body` and
    `checked` raise. least_bytes: so large a body may be refused for what it says, as images
    are; one that the schema takes is a text, and may be as large as the context holds."""
    body = await read(services, request, least_bytes)
    parsed = await checked(services, request, partial(_validated, schema, body))
    if least_bytes:
        await read(services, request)
    return parsed


async def read(services: Services, request: Request, least_bytes: int = 0) -> bytes:
    """Return the body of a request, of at most as many bytes as the context holds, or
    `least_bytes` if that is more. Raises what `read_body` raises."""
    return await read_body(request, max(least_bytes, await _limit_bytes(services, request)))


async def checked(services: Services, request: Request, check: Callable[[], T]) -> T:
    """Return what `check` returns for a request whose body has been read. The check runs at
    once if the body and its tenant's kept responses, which the body may refer to, are small;
    otherwise in the one thread where large bodies take turns. Raises Overloaded, or what
    `check` raises."""
    context = context_of(request)
    if len(await request.body()) + context.kept_bytes <= SMALL_BYTES:
        return check()
    return await services.checks.run(context.tenant, check)


def _validated(schema: type[Parsed], body: bytes) -> Parsed:
    values = Values()
    values.add(body)
    try:
        return schema.model_validate_json(body, context=values)
    except ValidationError as error:
        raise invalid(error) from None


async def _limit_bytes(services: Services, request: Request) -> int:
    """Return the limit of a body's bytes, which grows with the longest context that is
    known: a body's model is known once it has been read. No engine is asked about a body that
    is short enough for any context."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) <= MIN_LIMIT_BYTES:
        return MIN_LIMIT_BYTES
    lengths = [0]
    for backend in await services.models.reachable():
        with suppress(ApiError):  # a fallback may answer; else the request fails later
            lengths.append((await backend.engine.facts()).context_tokens)
    return body_limit_bytes(max(lengths))


@dataclass(frozen=True, slots=True)
class Question:
    """Holds a request that its endpoint has read, and who answers it."""

    endpoint: EndpointRequest
    backend: Backend
    facts: Facts
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Ready:
    """Holds a request whose answer can begin."""

    question: Question
    tokenizer: GatewayTokenizer
    output_format: OutputFormat
    name: str
    jobs: Sequence[Job]


async def generate(
    schema: type[Body], convert: Convert[Body], services: Services, request: Request
) -> Response:
    """Choose who answers a request, and return the answer. Raises ApiError."""
    services.drain.check()
    context = context_of(request)
    context.begin_answers(1)  # before reading the body, to bound the bodies on their way
    proxy = services.proxy
    if proxy and (response := await proxy.proxy_other_model(services, request)):
        return response
    try:
        ready = await _ready(schema, convert, services, request)
    except InvalidRequest as error:
        if proxy and (response := await proxy.proxy_refused(schema, services, request, error)):
            return response
        raise
    return await _answer(ready, services, request) if isinstance(ready, Ready) else ready


async def _ready(
    schema: type[Body], convert: Convert[Body], services: Services, request: Request
) -> Ready | Response:
    """Read and check a request; return its whole answer if nothing is to be generated here.
    Raises ApiError."""
    context, proxy = context_of(request), services.proxy
    question = await _question(schema, convert, services, request)
    body, facts = question.endpoint.body, question.facts
    body.check_served(facts)
    operation = "chat" if "messages" in type(body).model_fields else "text_completion"
    context.serve(facts.model, body.model, operation)
    if (proxy_refused := question.endpoint.replacement) is not None:
        return proxy_refused(facts.model)
    is_elsewhere = proxy and (proxy.is_without_drafts(facts.model) or body.scored_by)
    if proxy and question.backend.fallback is None and is_elsewhere:
        if question.endpoint.only_apart:
            reason = "the verifier in use takes no drafts, and answers only while one waits"
            raise InvalidRequest.of("background", reason, UNSUPPORTED)
        context.proxied_for = body.scored_by
        response = await proxy.proxy_without_drafts(services, request, facts.model)
        context.begin_answers(body.n * body.prompt_count - 1)
        return response
    _check_choices(body, services.settings.max_choices)
    tokenizer = await question.backend.tokenizer(facts.vocabulary)
    output_format = await services.output_format_of(tokenizer, context)
    name = f"{question.endpoint.id_prefix}{uuid.uuid4().hex}"
    jobs = await _jobs(question, services, output_format, name, request)
    return Ready(question, tokenizer, output_format, name, jobs)


def _check_choices(body: GenerationRequest, most: int) -> None:
    """Raise InvalidRequest for more choices than `most`, which a verifier may serve."""
    if body.prompt_count * body.n <= most:
        return
    beyond = InvalidRequest(
        f"{body.prompt_count} prompts times n = {body.n} exceeds {most} choices",
        param="n" if body.prompt_count == 1 else "prompt",
    )
    beyond.may_be_served = True
    raise beyond


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
    question = await _question(schema, convert, services, request)
    source = await question.backend.tokenizer(question.facts.vocabulary)
    tokenizer = BoundedTokenizer(source, question.facts, question.endpoint.body.prompt_field)
    tokenise = partial(question.endpoint.body.tokenise, tokenizer)
    prompts = await services.reader.read(context_of(request).tenant, tokenise)
    return json_response({**more, "input_tokens": sum(map(len, prompts))})


async def _question(
    schema: type[Body], convert: Convert[Body], services: Services, request: Request
) -> Question:
    """Read a request, and choose the engine or the fallback for it. Raises ApiError."""
    context, proxy = context_of(request), services.proxy
    parsed = await parse(schema, services, request, proxy.held_bytes if proxy else 0)
    endpoint = await checked(services, request, partial(convert, parsed))
    context.field_names = endpoint.names
    backend, facts = await services.find(context, endpoint.body.model)
    parameters = await checked(services, request, partial(parameters_of, endpoint.body, facts))
    context.ignored = shown_names((*endpoint.ignored, *parameters.ignored))
    return Question(endpoint, backend, facts, parameters)


async def _answer(ready: Ready, services: Services, request: Request) -> Response:
    """Generate the choices that a request asks for. Raises ApiError."""
    question, output_format, jobs = ready.question, ready.output_format, ready.jobs
    context, endpoint, facts = context_of(request), question.endpoint, question.facts
    body = endpoint.body
    if isinstance(grammar := jobs[0].extras.get(grammars.NAME), Mapping):
        path = renamed(question.parameters.constrained_at or "tools", endpoint.names)
        context.field_names = {**endpoint.names, **grammars.names_of(path, grammar)}
    context.begin_answers(len(jobs) - 1)
    fingerprint = question.backend.begin(len(jobs), facts)
    answer = endpoint.answer(
        Heading(
            ready.name, int(time.time()), facts.model, len(jobs), context.usage, fingerprint
        )
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


async def _jobs(
    question: Question,
    services: Services,
    output_format: OutputFormat,
    name: str,
    request: Request,
) -> list[Job]:
    """Return the jobs `name`-0, `name`-1, ...; the choices of a prompt get the seeds seed,
    seed + 1, ..."""
    body, facts, extras = question.endpoint.body, question.facts, question.parameters.extras
    context = context_of(request)
    prompts = await _read(services, body, facts, output_format, context)
    constrain = partial(_constrained, body, output_format, extras=extras)
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


async def _read(
    services: Services,
    body: GenerationRequest,
    facts: Facts,
    output_format: OutputFormat,
    context: RequestContext,
) -> tuple[TokenIds, ...]:
    """Return the prompts as tokens and charge for them, also if a prompt is refused."""
    tokenizer = BoundedTokenizer(output_format.tokenizer, facts, body.prompt_field)
    try:
        prompts = await services.reader.read(context.tenant, partial(body.tokenise, tokenizer))
    except BaseException:
        context.took_prompt(tokenizer.charged)
        raise
    context.took_prompt(sum(map(len, prompts)), choices=body.n)
    return prompts


def _constrained(
    body: GenerationRequest,
    output_format: OutputFormat,
    prompt: TokenIds,
    extras: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the extras of a job, in which the constraint covers the whole answer; the same
    object if the answer is only content. Raises InvalidRequest."""
    content = extras.get(grammars.NAME)
    mapping = content if isinstance(content, Mapping) else None
    constraint = body.constraint(output_format, prompt, mapping)
    more = body.more_extras(output_format, prompt)
    if constraint is mapping and not more:
        return extras
    constrained = {} if constraint is None else {grammars.NAME: constraint}
    return MappingProxyType({**extras, **more, **constrained})


MAX_LOGPROBS: Final = 1 << 20
"""All choices of an answer have at most this many log-probabilities, those of the likeliest
included: 8 choices of 6,241 tokens with 20 each. Their 60 MB are joined within 50 ms."""


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
