"""At start: the same session with and without drafts must say the same.

It notices a vLLM whose insides changed in a way that no missing name gives away, before a
client can. Drafts: right ones, one wrong one, and none; once greedy, once drawn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from speculation.messages import (
    Commit,
    Draft,
    Finish,
    ModelFacts,
    Open,
    Pushed,
    Sampling,
)
from verifier.target import Said, TargetFailed

TOKENS: Final = 12
_SHAPES: Final = (Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.95))


class Serves(Protocol):
    """What is tested."""

    @property
    def facts(self) -> ModelFacts: ...

    def serve(self, session: str, request: Open) -> AsyncGenerator[Said]: ...

    async def push(self, session: str, message: Pushed) -> None: ...


async def self_test(target: Serves) -> None:
    """Raise TargetFailed unless drafts leave the text as it is and are used."""
    for i, sampling in enumerate(_SHAPES):
        request = _request(target.facts, sampling)
        plain, _ = await _run(target, f"self-test-{i}-plain", request, [])
        wrong = (*plain[:8], (plain[8] + 1) % target.facts.vocabulary_size)
        for name, drafts in {"right": plain[:9], "wrong": wrong}.items():
            said, finish = await _run(target, f"self-test-{i}-{name}", request, drafts)
            if said != plain:
                raise TargetFailed(f"self-test: with {name} drafts {said}, without {plain}")
            if not finish.totals.judged:
                raise TargetFailed(f"self-test: {name} drafts were not judged")


def _request(facts: ModelFacts, sampling: Sampling) -> Open:
    prompt = tuple(range(min(32, facts.vocabulary_size)))
    return Open(facts.model, facts.vocabulary, prompt, sampling, 7, TOKENS, ())


async def _run(
    target: Serves, session: str, request: Open, drafts: Sequence[int]
) -> tuple[list[int], Finish]:
    """Run a session whose edge drafts, once it has heard the first token, what follows it."""
    tokens: list[int] = []
    async with aclosing(target.serve(session, request)) as said:
        async for message in said:
            if isinstance(message, Finish):
                return tokens, message
            if isinstance(message, Commit):
                if not tokens and drafts:
                    draft = Draft(1, len(message.tokens), 0, tuple(drafts[1:]))
                    await target.push(session, draft)
                tokens.extend(message.tokens)
    raise TargetFailed("self-test: the session had no Finish")
