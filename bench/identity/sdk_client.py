"""Asks for one answer through the openai SDK, with the log-probabilities of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
from openai import AsyncOpenAI, omit
from openai.types.chat import ChatCompletionTokenLogprob

from bench.data.prompts import Prompt, sampling
from bench.identity.ties import Noise, Parting, TokenScores
from models.vocabulary import Vocabulary
from speculation.sampling.noise import gumbel, place

SEED: Final = 7
TIMEOUT_S: Final = 1800.0
"""Limit of the time without an answer: many at once take a slow target long."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What is the same in all questions."""

    tokens: int
    """Limit of an answer's length."""

    likeliest: int | None = None
    """Tokens at each position whose log-probabilities are asked for; None: none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service generated for one prompt."""

    arm: str
    prompt: str
    family: str
    temperature: float
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    speculation: dict[str, Any]
    scores: tuple[TokenScores, ...] = ()
    """Empty unless log-probabilities were asked for."""

    identical: bool | None = None
    """Whether it is the plain engine's answer; None on the plain engine's own."""

    parting: Parting | None = None


async def ask(asking: Asking, url: str, arm: str, prompt: Prompt, temperature: float) -> Answer:
    """Stream one answer and return it as a whole."""
    began = perf_counter()
    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        model = (await client.models.list()).data[0].id
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt.prompt}],
            temperature=temperature,
            top_p=sampling(temperature).top_p,
            seed=SEED,
            max_tokens=asking.tokens,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=asking.likeliest is not None,
            top_logprobs=omit if asking.likeliest is None else asking.likeliest,
        )
        text, usage = "", None
        scores: list[TokenScores] = []
        speculation: dict[str, Any] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                scores += map(_scores, (choice.logprobs and choice.logprobs.content) or ())
            if chunk.usage:
                usage = chunk.usage
                metrics = (chunk.model_extra or {}).get("metrics") or {}
                speculation = metrics.get("speculative_decoding") or {}
    return Answer(
        arm,
        prompt.id,
        prompt.family,
        temperature,
        text,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        perf_counter() - began,
        speculation,
        tuple(scores),
    )


def _scores(entry: ChatCompletionTokenLogprob) -> TokenScores:
    top = ((bytes(each.bytes or ()), each.logprob) for each in entry.top_logprobs)
    return TokenScores(bytes(entry.bytes or ()), entry.logprob, tuple(top))


def noise_of(vocabulary: Vocabulary, answer: Answer) -> Noise:
    """Return the noise that sampled an answer, in the units of its log-probabilities."""

    def noise(position: int, piece: bytes) -> float:
        if answer.temperature == 0:
            return 0.0
        token = vocabulary.pieces.index(piece) if piece else vocabulary.eos
        at = place(answer.prompt_tokens, position)
        return answer.temperature * float(gumbel(SEED, at, np.array([token]))[0])

    return noise
