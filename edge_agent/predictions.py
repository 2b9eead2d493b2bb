"""The text that a client expects in the answer, as tokens of the target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.ports import Job
from models.tokenizing.tokenizer import Tokenizer
from speculation.proposing.prediction import PredictedText, Prediction
from speculation.proposing.proposer import Proposer
from speculation.protocol.messages import Open
from speculation.protocol.opening import PREDICTION


async def prediction_of(
    job: Job,
    request: Open,
    tokenizer: Callable[[], Awaitable[Tokenizer]],
    other: Proposer | None,
    *,
    most_tokens: int,
) -> Prediction | None:
    """Return what proposes a job's prediction, if it has one and any draft token is exact.
    A thread reads the text, which may be a whole file."""
    text = job.extras.get(PREDICTION)
    if request.judge != "coupled" or not (isinstance(text, str) and text):
        return None
    encode = (await tokenizer()).encode

    def read() -> PredictedText:
        return PredictedText(encode(text, special=False, begin=False)[:most_tokens])

    return Prediction(await asyncio.to_thread(read), other)
