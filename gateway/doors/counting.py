"""Counts the tokens of a prompt that nothing is generated for."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.body import checked, parse
from picospec.gateway.doors.door import Body, Read
from picospec.gateway.doors.parameters import parameters_of, shown_names
from picospec.gateway.doors.services import Services
from picospec.gateway.http.responses import json_response
from picospec.gateway.tenants.reading import BoundedTokenizer


async def count_prompt(
    schema: type[Body],
    read: Read[Body],
    services: Services,
    request: Request,
    **more: str,
) -> Response:
    """Answer how many tokens the prompt of a request at a door has. more: what else the answer
    says. Raises ApiError."""
    account: Account = request.state.account
    parsed = await parse(schema, services, request)
    asked = await checked(services, request, partial(read, parsed))
    account.field_names, body = asked.names, asked.body
    services = await services.for_request(account)
    facts = await services.facts_of(body.model)
    given = await checked(services, request, partial(parameters_of, body, facts))
    account.ignored = shown_names((*asked.ignored, *given.ignored))
    source = await services.tokenizer(facts.vocabulary)
    tokenizer = BoundedTokenizer(source, facts, body.prompt_field)
    prompts = await services.reader.read(account.tenant, partial(body.tokenise, tokenizer))
    return json_response({**more, "input_tokens": sum(map(len, prompts))})
