"""POST /v1/messages/count_tokens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.doors.counting import count_prompt
from picospec.gateway.doors.messages.answer import asked
from picospec.gateway.doors.messages.request import MessagesRequest
from picospec.gateway.doors.services import Services
from picospec.gateway.http.responses import json_response


async def count_tokens(services: Services, request: Request) -> Response:
    """Answer how many tokens the prompt of these messages has."""
    tokens = await count_prompt(MessagesRequest, asked, services, request)
    return json_response({"input_tokens": tokens})
