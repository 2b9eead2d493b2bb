"""Asks a verifier for the prompt of a chat that no template renders, and checks its answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from edge_agent.link.connection import Connection
from edge_agent.link.errors import AnswerTooLong, from_answer
from gateway.endpoints.rendering import PATH, RenderedPrompt
from gateway.errors import EngineFault
from gateway.ports import Facts
from speculation.untrusted import Malformed, decode_json

WITHIN_S: Final = 10.0
"""A prompt that the verifier's server has not made within this time is not waited for: its own
API answers the chat. Megabytes of text take it seconds."""

_TOKEN_BYTES: Final = 9
"""A token id below 2^20 takes at most this much of an answer: its digits, a comma, a space."""

_MIN_BYTES: Final = 1 << 10


async def rendered(way: Connection, body: bytes, facts: Facts) -> tuple[int, ...]:
    """Return the prompt of a chat. Raises EngineFault for an answer that is no prompt of the
    model, LinkDown if there is none, or the verifier's own ApiError."""
    most_bytes = _MIN_BYTES + facts.context_tokens * _TOKEN_BYTES
    headers = {"content-type": "application/json"}
    try:
        answer = await way.ask(
            "POST", PATH, body, headers, within_s=WITHIN_S, max_bytes=most_bytes
        )
        if answer.status != HTTPStatus.OK:
            raise from_answer(answer)
        tokens = decode_json(answer.content, RenderedPrompt).token_ids
    except (AnswerTooLong, Malformed) as error:
        raise _bad(way, str(error)) from error
    if not tokens or max(tokens) >= facts.vocabulary_size:
        raise _bad(way, "it is empty, or has ids that are no tokens")
    return tuple(tokens)


def _bad(way: Connection, reason: str) -> EngineFault:
    return EngineFault(f"the prompt from {way.url} cannot be used: {reason}", code="bad_prompt")
