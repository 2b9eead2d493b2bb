"""The text that a client expects in the answer, as tokens of the target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.ports import Job
from models.tokenizing.tokenizer import Tokenizer
from speculation.protocol.messages import MAX_PREDICTED, TokenId
from speculation.protocol.opening import PREDICTION


async def predicted_tokens(
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
