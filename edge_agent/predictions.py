"""Lets the verifier draft too, from the text that the client expects in the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.ports import Job
from models.tokenizing.tokenizer import Tokenizer
from speculation.protocol.messages import MAX_PREDICTED, Open, TokenId
from speculation.protocol.opening import PREDICTION


async def with_own_drafts(
    request: Open, job: Job, tokenizer: Callable[[], Awaitable[Tokenizer]]
) -> Open:
    """Return the request with leave for the verifier to propose draft tokens, and with what the
    job predicts, if any draft token is exact and none must be the edge's."""
    if request.judge != "coupled" or request.fill != "auto":
        return request
    return replace(request, own_drafts=True, predicted=await _predicted(job, tokenizer))


async def _predicted(
    job: Job, tokenizer: Callable[[], Awaitable[Tokenizer]]
) -> tuple[TokenId, ...]:
    """Return the tokens that a job predicts, if any. A thread reads the text, which may be a
    whole file."""
    text = job.extras.get(PREDICTION)
    if not (isinstance(text, str) and text):
        return ()
    encode = (await tokenizer()).encode
    tokens = await asyncio.to_thread(encode, text, special=False, begin=False)
    return tuple(tokens[:MAX_PREDICTED])
