"""An edge whose drafts follow a script: the real drafting session, given its draft tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import msgspec
import numpy as np

from speculation.distributions import Distribution, QuantisedDistribution, quantise
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.judges import JUDGES
from speculation.messages import (
    Commit,
    Draft,
    Finish,
    Open,
    Pushed,
    Recovered,
    Reject,
    Sampling,
    TokenLogprob,
)
from speculation.model_facts import ModelFacts
from speculation.wire import Framed
from tests.verifier.down import replies_of
from verifier.target import UnknownSession
from verifier.vllm_target.serving.target import VllmTarget

PROMPTS = (
    "The capital of France is a city that",
    "def fibonacci(n):\n",
    "In the beginning there was a computer which",
    "Dear Sir or Madam, I am writing to",
    "Question: what is 12 times 7? Answer:",
    "Once upon a time, there was",
)
GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=1.0, top_p=0.95)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
"""A JSON schema."""
SHAPED = {
    "presence_penalty": 0.8,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {28: 4.0, 30: -100.0, 198: 2.0},
    "min_tokens": 30,
}
"""All settings that change logits."""


_NUMBERS = count()
"""Of requests without a session, for their names."""


@dataclass(frozen=True)
class Script:
    """How good the drafts are, and how late."""

    wrong: float = 0.0
    """The share of draft tokens that differ from the target's."""

    late_s: float = 0.0
    window: int = 24
    seed: int = 5
    at_once: bool = False
    """Whether it drafts before the first token is known."""


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None


def with_extras(sampling: Sampling, **extras: object) -> Sampling:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in extras.items()}
    return msgspec.structs.replace(sampling, extras=raw)


def opening(target: VllmTarget, prompt: str, sampling: Sampling, **fields: object) -> Open:
    facts: ModelFacts = target.facts
    settings: dict[str, object] = {"seed": 1234, "max_tokens": 64, "stop_tokens": ()}
    return Open(
        facts.model,
        facts.vocabulary,
        tuple(target.tokenizer.encode(prompt)),
        sampling,
        **(settings | fields),  # type: ignore[arg-type]
    )


async def plain(target: VllmTarget, session: str, request: Open) -> Answer:
    """Run a session without drafts."""
    answer = Answer(list(request.committed))
    async with aclosing(replies_of(target, session, request)) as messages:
        async for reply in messages:
            message = reply.message
            take_in(answer, message)
    return answer


async def said_by_vllm(
    target: VllmTarget, prompt: Sequence[int], asked: Any, lora: Any = None
) -> Any:
    """Return vLLM's last output for a request without a session. asked: its SamplingParams."""
    name, tokens = f"own {next(_NUMBERS)}", {"prompt_token_ids": list(prompt)}
    outputs = target._engine._llm.generate(tokens, asked, name, lora_request=lora)
    return [output async for output in outputs][-1]


def take_in(answer: Answer, message: object) -> None:
    if isinstance(message, Commit):
        assert message.start == len(answer.tokens)
        answer.tokens.extend(message.tokens)
        answer.logprobs.extend(message.logprobs or ())
    if isinstance(message, Finish):
        answer.finish = message


async def drafted(
    target: VllmTarget, session: str, request: Open, oracle: list[int], script: Script
) -> Answer:
    """Run a session whose edge drafts the oracle's tokens, as often wrong and as late as the
    script wants."""
    edge = DraftingSession(max_tokens=request.max_tokens, stop_tokens=request.stop_tokens)
    edge.committed.extend(request.committed)
    draft = drafter(oracle, script, target.facts.vocabulary_size)
    answer = Answer(list(request.committed))
    async with (
        aclosing(replies_of(target, session, request)) as messages,
        asyncio.TaskGroup() as tasks,
    ):

        def extend() -> None:
            while edge.may_extend and len(edge.chain) < script.window:
                edge.extend(DraftToken(draft(edge.end), confidence=1.0))
            if new := edge.flush():
                tasks.create_task(_push(target, session, new, script.late_s))

        if script.at_once:
            extend()
        async for reply in messages:
            message = reply.message
            take_in(answer, message)
            if isinstance(message, Commit):
                edge.receive(message)
                extend()
    return answer


async def _push(target: VllmTarget, session: str, message: Pushed, late_s: float) -> None:
    await asyncio.sleep(late_s)
    with suppress(UnknownSession):  # it came too late
        await target.push(session, Framed(message))


def drafter(oracle: list[int], script: Script, size: int) -> Callable[[int], int]:
    """Return a function from a position to the draft token there. size: of the vocabulary."""
    random = Random(script.seed)

    def draft(position: int) -> int:
        token = oracle[position] if position < len(oracle) else 0
        return (token + 1) % size if random.random() < script.wrong else token

    return draft


def uniforms(random: Random) -> Iterator[float]:
    while True:
        yield random.random()


def even() -> QuantisedDistribution:
    """A distribution of a hundred tokens, which are seldom right."""
    return quantise(Distribution(np.arange(260, 360), np.full(100, 0.01)))


async def recovered(
    target: VllmTarget, session: str, request: Open, random: Random, late_s: float = 0.0
) -> tuple[list[int], int]:
    """Run a session judged `separate` whose draft tokens are nearly always rejected.

    late_s: how long the edge takes to draw a recovered token. Return the tokens and the number
    of rejections.
    """
    half = JUDGES["separate"].edge(request, uniforms(random))
    machine = DraftMachine(
        request, StreamPolicy(), target.facts.limits, half, rtt_s=lambda: 0.0
    )
    edge, q, rejections = machine.session, even(), 0
    async with aclosing(replies_of(target, session, request)) as messages:
        async for reply in messages:
            if isinstance(reply.message, Reject):
                rejections += 1
                await asyncio.sleep(late_s)
            answers = machine.received(reply.message).send
            while edge.may_extend and len(edge.chain) < 3:
                edge.extend(DraftToken(q.at(random.random()), 1.0, q))
            for message in (*answers, edge.flush()):
                if message is not None:
                    await target.push(session, Framed(message))
    return list(edge.committed), rejections


async def moved(
    target: VllmTarget, session: str, request: Open, rejected: int, taken: int
) -> tuple[Reject, list[int]]:
    """Go on with an answer whose draft token was rejected elsewhere; its weight is one that
    judging would accept. taken: the recovered token. Return what is sent of the rejection, and
    the tokens from there on."""
    at = len(request.committed)
    answer = Answer(list(request.committed))
    async with aclosing(replies_of(target, session, request)) as messages:
        coming = asyncio.create_task(anext(messages))
        await served(target, 1, within_s=60)
        await asyncio.sleep(0.2)
        await target.push(session, Framed(Draft(5, at, 0, (rejected, 7), (1, 1))))
        reject = (await coming).message
        assert isinstance(reject, Reject)
        await target.push(session, Framed(Recovered(6, at, taken)))
        async for reply in messages:
            take_in(answer, reply.message)
    return reject, answer.tokens[at:]


async def served(target: VllmTarget, count: int, within_s: float) -> None:
    """Wait until the engine has so many sessions."""
    async with asyncio.timeout(within_s):
        while (await target.figures())["sessions"] != count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def gone(target: VllmTarget, within_s: float = 20.0) -> None:
    """Wait until the engine has no session left."""
    await served(target, 0, within_s)
