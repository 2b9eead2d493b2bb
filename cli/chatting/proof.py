"""`/proof`: the same question, with the same seed, to the large model alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from picospec.cli.chatting.client import DIRECT, Turn, first_model, stream_answer


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, and answered in `seconds`."""

    messages: Sequence[Turn]
    seed: int
    text: str
    seconds: float


async def prove(client: httpx.AsyncClient, asked: Asked) -> str:
    """Return a sentence that compares. Raises ChatError, also where there is no edge."""
    model, began_s = await first_model(client), time.monotonic()
    stream = stream_answer(client, model, asked.messages, DIRECT, seed=asked.seed)
    text = "".join([chunk.text async for chunk in stream])
    seconds = time.monotonic() - began_s
    if text != asked.text:
        same = _same(text, asked.text)
        return (
            f"The texts differ after {same} characters. A near-tie of the large model can do"
            " that; the page's “Prove it” shows both tokens' probabilities."
        )
    times = f"{asked.seconds:.1f} s, and the large model alone {seconds:.1f} s"
    return f"The same text, character for character. It took {times}."


def _same(text: str, other: str) -> int:
    """Return with how many characters both texts begin."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
