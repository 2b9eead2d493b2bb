"""POST /v1/messages/count_tokens."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.body import checked, parse
from picospec.gateway.doors.messages.request import MessagesRequest
from picospec.gateway.doors.parameters import parameters_of, shown_names
from picospec.gateway.doors.services import Services
from picospec.gateway.http.responses import json_response
from picospec.gateway.tenants.reading import BoundedTokenizer


async def count_tokens(services: Services, request: Request) -> Response:
    """Answer how many tokens the prompt of these messages has."""
    body = await parse(MessagesRequest, services, request)
    chat = await checked(services, request, body.chat)
    account: Account = request.state.account
    services = await services.for_request(account)
    facts = await services.facts_of(chat.model)
    given = await checked(services, request, partial(parameters_of, chat, facts))
    account.ignored = shown_names((*body.ignored(), *given.ignored))
    source = await services.tokenizer(facts.vocabulary)
    tokenizer = BoundedTokenizer(source, facts, chat.prompt_field)
    (prompt,) = await services.reader.read(account.tenant, partial(chat.tokenise, tokenizer))
    return json_response({"input_tokens": len(prompt)})
