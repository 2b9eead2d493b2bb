"""The text that a client expects the answer to follow, as tokens of the target."""

from __future__ import annotations

import asyncio

from gateway.ports import Job
from models.tokenizer import Tokenizer
from speculation.proposing.prediction import PredictedText
from speculation.protocol.opening import PREDICTION


async def predicted_text(
    job: Job, tokenizer: Tokenizer, *, most_tokens: int
) -> PredictedText | None:
    """Return a job's prediction, if it has one. A thread reads it: it may be a whole file."""
    text = job.extras.get(PREDICTION)
    if not (isinstance(text, str) and text):
        return None

    def read() -> PredictedText:
        return PredictedText(tokenizer.encode(text, special=False, begin=False)[:most_tokens])

    return await asyncio.to_thread(read)
