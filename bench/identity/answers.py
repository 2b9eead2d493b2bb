"""One service's answers, with the log-probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np

from picospec.bench.data.prompts import Prompt
from picospec.bench.identity.ties import Noise, Parting, TokenScores
from picospec.bench.run.client import Client, Question, Reply
from picospec.gateway.tokenizer import NONE
from picospec.models.vocabulary import Vocabulary
from picospec.speculation.sampling.noise import gumbel, place

SEED: Final = 7
TIMEOUT_S: Final = 1800.0
"""An answer fails after this time without a byte: many at once take a slow target long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service generated for one prompt."""

    arm: str
    prompt: str
    temperature: float
    reply: Reply
    identical: bool | None = None
    """It is true if this is the plain engine's answer; None on the plain engine's own."""

    parting: Parting | None = None

    @property
    def scores(self) -> list[TokenScores]:
        """What is known of each token; empty unless log-probabilities were asked for."""
        return list(map(_scores, self.reply.logprobs))


async def ask(
    url: str,
    arm: str,
    prompt: Prompt,
    temperature: float,
    *,
    tokens: int,
    likeliest: int | None,
    settings: Mapping[str, object] = NONE,
) -> Answer:
    """Ask for one answer. Raises AnswerError, or httpx.TransportError."""
    question = Question(prompt.prompt, temperature, SEED, tokens, likeliest, settings)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        return Answer(arm, prompt.id, temperature, await Client(http).ask(question))


def _scores(entry: dict[str, Any]) -> TokenScores:
    top = ((bytes(each["bytes"] or ()), each["logprob"]) for each in entry["top_logprobs"])
    return TokenScores(bytes(entry["bytes"] or ()), entry["logprob"], tuple(top))


def noise_of(vocabulary: Vocabulary, answer: Answer) -> Noise:
    """Return the noise that sampled an answer, in the units of its log-probabilities."""

    def noise(position: int, piece: bytes) -> float:
        if answer.temperature == 0:
            return 0.0
        token = vocabulary.pieces.index(piece) if piece else vocabulary.eos or 0
        at = place(answer.reply.prompt_tokens, position)
        return answer.temperature * float(gumbel(SEED, at, np.array([token]))[0])

    return noise
