"""A chat whose prompt the verifier's server makes by code: what is asked there, and the answer.

No template has these prompts, so a verifier lists `PATH` in its facts. It gets what shapes the
prompt, and answers with the prompt's tokens.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.services import Json
from gateway.errors import InvalidRequest, Unsupported

PATH: Final = "/v1/prompt"
"""A POST of a chat's fields is answered with a RenderedPrompt."""

_SHAPING: Final = ("messages", "reasoning_effort")
"""The prompt gets these fields as the client has sent them."""


class RenderedPrompt(msgspec.Struct, frozen=True):
    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]]


def fields_of(body: ChatRequest, fields: Json) -> Json:
    """Return the part of a request that shapes its prompt. fields: the request, as it came.

    Raises Unsupported for tools and constraints, whose answers are not parsed here as there.
    """
    if body.tools or any(body.constraints()):
        raise not_rendered("tools and constraints are shown by the verifier's own API alone")
    shaping: Json = {name: fields[name] for name in _SHAPING if fields.get(name) is not None}
    return shaping | {
        "chat_template_kwargs": body.template_variables,
        "continue_final_message": body.continue_final_message,
        "add_generation_prompt": not body.continue_final_message,
    }


def not_rendered(reason: object) -> Unsupported:
    """Return the error for a chat that the verifier's own API must answer as a whole."""
    return Unsupported.of("messages", reason, InvalidRequest.code)
