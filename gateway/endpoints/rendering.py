"""A chat whose prompt the verifier's server makes by code: what is asked there, and the answer.

No template has these prompts, so a verifier lists `PATH` in its facts. It gets what shapes the
prompt, and answers with the prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.services import Json
from gateway.errors import InvalidRequest, Unsupported

PATH: Final = "/v1/prompt"
"""A POST of a chat's fields is answered with a RenderedPrompt."""

STOPS: Final = ("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output")
_LISTED: Final = ("tools", "continue_final_message", *STOPS)
"""A chat may have these fields only if the verifier lists them for PATH: it answers as this
service would."""


class RenderedPrompt(msgspec.Struct, frozen=True):
    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]]


def fields_of(body: ChatRequest, fields: Json, listed: Sequence[str]) -> Json:
    """Return the part of a request that shapes its prompt. fields: the request, as it came.
    listed: what the verifier lists for PATH.

    Raises Unsupported for constraints, also of calls, and for fields that are not listed.
    """
    use = body.tool_use
    is_free = use.choice == "auto" and use.parallel and not (use.needs_grammar or use.custom)
    if any(body.constraints()) or (body.tools and not is_free):
        raise not_rendered(
            "constraints and forced calls are met by the verifier's own API alone"
        )
    for name in _LISTED:
        if getattr(body, name) and name not in listed:
            raise not_rendered(f"{name} is read by the verifier's own API alone")
    shaping: Json = {name: fields[name] for name in ("messages", "tools") if fields.get(name)}
    return shaping | {
        "reasoning_effort": body.thinking_choice.effort,
        "chat_template_kwargs": body.template_variables,
        "continue_final_message": body.continue_final_message,
        "add_generation_prompt": not body.continue_final_message,
    }


def not_rendered(reason: object) -> Unsupported:
    """Return the error for a chat that the verifier's own API must answer as a whole."""
    return Unsupported.of("messages", reason, InvalidRequest.code)
