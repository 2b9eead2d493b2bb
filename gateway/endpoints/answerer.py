"""Decides once who answers a request: an engine, its fallback, or another service by a proxy.

Another service answers a request for a model of its own; one with a field that only the
verifier's own API serves; and one for which no drafts are made. `choose` reads a request as far
as the decision needs: only the prompt shows whether a chat can be rendered here. The verifier's
server may make the prompt where no template does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints import rendering
from gateway.endpoints.bodies import checked, parse, read
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.endpoint import Body, Convert, EndpointRequest
from gateway.endpoints.parameters import Parameters, parameters_of, shown_names
from gateway.endpoints.request import GenerationRequest, TokenIds
from gateway.endpoints.services import Backend, Forward, Json, ProxyPort, Services, no_model
from gateway.errors import (
    ApiError,
    ClientGone,
    EngineFault,
    InvalidRequest,
    Unsupported,
    renamed,
)
from gateway.hosting.settings import MAX_CHOICES
from gateway.http import connected
from gateway.output.output_format import OutputFormat
from gateway.ports import Facts, Fallback, GatewayTokenizer
from gateway.prompt_reader import BoundedTokenizer
from gateway.request_context import RequestContext, context_of
from gateway.schema import RequestModel

CHATS: Final = "/v1/chat/completions"
_NATIVE: Final = ("/completion", "/completions", "/infill", "/api/chat", "/api/generate")
_PATHS: Final = {
    "/chat/completions": CHATS,
    **{path: path for path in (CHATS, "/v1/completions", "/v1/responses", "/v1/messages")},
    **{path: path for path in _NATIVE},
}
"""Maps the paths that ask for answers to those of another service."""

WITHOUT_DRAFTS: Final = "undrafted"
"""`x-picospec-fallback` and the log have this value for an answer without drafts, because the
ends speak different versions of the protocol."""

Complete = Callable[[Json], Json]
"""Adds to the fields of a request what only this service keeps. Raises InvalidRequest."""


@dataclass(frozen=True, slots=True)
class Question:
    """Holds a request that its endpoint has read, and who answers it here."""

    endpoint: EndpointRequest
    backend: Backend
    facts: Facts
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Ready:
    """Holds a question whose prompts were read: its engine or fallback answers."""

    question: Question
    tokenizer: GatewayTokenizer
    output_format: OutputFormat
    prompts: tuple[TokenIds, ...]


async def choose(
    schema: type[Body],
    convert: Convert[Body],
    services: Services,
    request: Request,
    complete: Complete,
) -> Ready | Forward | Response:
    """Return who answers a request: an engine or a fallback as Ready, another service as
    Forward; or the whole answer, if nothing is to be generated. Raises ApiError.

    complete: adds to the fields of a request what another service does not keep.
    """
    if services.proxy is not None:
        forward = await _listed(services.proxy, services, request)
        if forward is not None:
            return forward
    try:
        question = await ask(schema, convert, services, request)
        return await _here(question, services, request, complete)
    except Unsupported as refusal:
        forward = await _own_api(schema, services, request, complete, refusal)
        if forward is None:
            raise
        return forward


async def ask(
    schema: type[Body], convert: Convert[Body], services: Services, request: Request
) -> Question:
    """Read a request, and find the engine of its model or the fallback. Raises ApiError."""
    context, proxy = context_of(request), services.proxy
    parsed = await parse(schema, services, request, proxy.held_bytes if proxy else 0)
    endpoint = await checked(services, request, partial(convert, parsed))
    context.outcome.field_names = endpoint.names
    path = _PATHS.get(request.scope["path"], "")
    backend, facts = await services.find(context, endpoint.body.model, path)
    parameters = await checked(services, request, partial(parameters_of, endpoint.body, facts))
    context.outcome.ignored = shown_names((*endpoint.ignored, *parameters.ignored))
    return Question(endpoint, backend, facts, parameters)


async def _here(
    question: Question, services: Services, request: Request, complete: Complete
) -> Ready | Forward | Response:
    """Return who answers a question that its endpoint takes. Raises ApiError, Unsupported for
    what no engine here serves."""
    context, body, facts = context_of(request), question.endpoint.body, question.facts
    body.check_served(facts)
    operation = "chat" if "messages" in type(body).model_fields else "text_completion"
    context.serve(facts.model, body.model, operation)
    if (replacement := question.endpoint.replacement) is not None:
        return replacement(facts.model)
    backend = question.backend
    if (fallback := backend.fallback) is not None and fallback.is_elsewhere:
        return await _elsewhere(fallback, question, services, request, complete)
    proxy = None if fallback is not None or backend.is_local else services.proxy
    if proxy is not None and (proxy.is_without_drafts(facts.model) or body.scored_by):
        return await _undrafted(proxy, question, services, request)
    _check_choices(body, services.settings.max_choices)
    tokenizer = await question.backend.tokenizer(facts.vocabulary)
    output_format = await services.output_format_of(tokenizer, context)
    prompts: tuple[TokenIds, ...]
    if proxy is not None and rendering.PATH in facts.served and isinstance(body, ChatRequest):
        prompts = (await _rendered(proxy, body, facts, services, request),)
    else:
        prompts = await _read(services, body, facts, output_format, context)
    return Ready(question, tokenizer, output_format, prompts)


def _check_choices(body: GenerationRequest, most: int) -> None:
    """Raise Unsupported for more choices than `most`."""
    if body.prompt_count * body.n > most:
        raise Unsupported(
            f"{body.prompt_count} prompts times n = {body.n} exceeds {most} choices",
            param="n" if body.prompt_count == 1 else "prompt",
            code=InvalidRequest.code,
        )


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


async def _rendered(
    proxy: ProxyPort, body: ChatRequest, facts: Facts, services: Services, request: Request
) -> TokenIds:
    """Return the prompt of a chat that the verifier's server makes, and charge for it. Raises
    Unsupported if it makes none, so that its own API answers; EngineFault for a wrong prompt,
    ClientGone."""
    if _PATHS.get(request.scope["path"]) != CHATS:
        raise rendering.not_rendered("only a chat completion is shown to this model from here")
    sent, listed = await request.body(), facts.served[rendering.PATH]
    fields = await checked(
        services, request, lambda: rendering.fields_of(body, proxy.fields_of(sent), listed)
    )
    try:
        async with connected(request.receive):
            prompt = await proxy.prompt(fields, facts)
    except (EngineFault, ClientGone):
        raise
    except ApiError as error:
        raise rendering.not_rendered(error.message) from error
    context_of(request).took_prompt(len(prompt), choices=body.n)
    return prompt


async def _listed(proxy: ProxyPort, services: Services, request: Request) -> Forward | None:
    """Return how another service answers, if the body names one of its models."""
    path = _PATHS.get(request.scope["path"])
    if path is None or not proxy.models:
        return None
    body = await read(services, request, proxy.held_bytes)
    forward = await checked(services, request, partial(proxy.listed, path, body))
    if forward is not None:
        context = context_of(request)
        if not context.tenant.opens(forward.model):
            raise no_model(forward.model, context.tenant.models)
        context.serve(forward.model, None, "chat")
    return forward


async def _undrafted(
    proxy: ProxyPort, question: Question, services: Services, request: Request
) -> Forward:
    """Return how the verifier answers a question that needs no drafts, or for which it takes
    none. Raises Unsupported for an answer that outlives its connection."""
    body, model = question.endpoint.body, question.facts.model
    if question.endpoint.only_apart:
        reason = "the verifier in use takes no drafts, and answers only while one waits"
        raise Unsupported.of("background", reason)
    fields = await checked(services, request, partial(proxy.fields_of, await request.body()))
    path: str = request.scope["path"]
    if proxy.is_without_drafts(model):
        context_of(request).outcome.fallback = WITHOUT_DRAFTS
    answers = body.n * body.prompt_count
    return Forward(_PATHS.get(path, path), fields, model, answers, body.scored_by)


async def _elsewhere(
    fallback: Fallback,
    question: Question,
    services: Services,
    request: Request,
    complete: Complete,
) -> Forward:
    """Return how the server of a fallback answers a question. Raises Unsupported for an answer
    that outlives its connection, EngineFault without a proxy."""
    body, model = question.endpoint.body, question.facts.model
    if services.proxy is None:
        raise EngineFault("there is no proxy")
    if question.endpoint.only_apart:
        reason = "no verifier can be reached, and another server answers only while one waits"
        raise Unsupported.of("background", reason)
    _check_choices(body, services.settings.max_choices)
    fields_of = partial(services.proxy.fields_of, await request.body())
    fields = await checked(services, request, lambda: complete(fields_of()))
    answers = body.n * body.prompt_count
    fallback.count_answers(answers)
    path = _PATHS[request.scope["path"]]
    return Forward(path, fields, model, answers, is_fallback=True)


async def _own_api(
    schema: type[RequestModel],
    services: Services,
    request: Request,
    complete: Complete,
    refusal: Unsupported,
) -> Forward | None:
    """Return how the verifier's own API answers a request that was refused here; None if it
    does not serve what was refused. Raises ApiError."""
    context, path = context_of(request), _PATHS.get(request.scope["path"], "")
    proxy = services.proxy
    if proxy is None or context.outcome.fallback or context.usage.prompt_tokens:
        return None  # a prompt is charged once
    field = renamed(refusal.param or "", context.outcome.field_names).partition(".")[0]
    try:
        body = await request.body()
        fields = await checked(services, request, partial(proxy.fields_of, body))
        _, facts = await services.own(context, model_of(fields))
    except ApiError:  # what is wrong with the request is known already
        return None
    is_served = field in facts.served.get(path, ()) and field != "model"
    if not is_served or field not in fields:
        return None
    fields = await checked(services, request, partial(complete, fields))
    make = partial(proxy.own_api, path, fields, field, facts, schema)
    forward = await checked(services, request, make)
    if forward.answers > MAX_CHOICES:
        return None
    context.outcome.ignored = shown_names(forward.ignored)
    context.serve(facts.model, None, "chat")
    return forward


def model_of(fields: Json) -> str | None:
    """Return the model that a request names, if it names one. Raises InvalidRequest."""
    model = fields.get("model")
    if model is None or isinstance(model, str):
        return model
    raise InvalidRequest.of("model", "expected a text")
