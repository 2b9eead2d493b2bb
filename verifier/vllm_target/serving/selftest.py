"""Checks at start that a session generates the same text with and without draft tokens.

First the engine learns the latency of passes by their rows, so that no client pays for that.

The test finds changes inside vLLM that no missing name shows, before a client meets them. The
draft tokens are all right, wrong in the last one, or absent; greedy first, then sampled.

In bfloat16 a near-tie may be decided differently in a pass of another shape, about once in 600
tokens. So if texts differ another prompt is tried, and only a difference for every prompt is
an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from speculation.latency import PassLatency, unmeasured
from speculation.messages import (
    Commit,
    Draft,
    Fill,
    Finish,
    ModelFacts,
    Open,
    Sampling,
    TokenId,
)
from speculation.verify_machine import MIN_PASS_S
from speculation.wire import Framed
from verifier.target import Target, TargetFailed

TOKENS: Final = 12
DRAFTED: Final = 9
"""This many of TOKENS are drafted; a wrong one is the last of these."""

ATTEMPTS: Final = 3
"""If no draft token was judged, everything is tried this many times: on a busy machine a slow
pass may make rows look too expensive to judge any."""

PROMPTS: Final = 4
PROMPT_TOKENS: Final = 32

WITHIN_S: Final = 120.0
"""A session may take this long; one without output must not keep the service loading."""

_SAMPLINGS: Final = (Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.95))


async def self_test(target: Target) -> None:
    """Raise TargetFailed unless draft tokens leave the text unchanged and some are judged.

    Some may stay unjudged, if rows are expensive or one pass was slow.
    """
    for attempt in range(ATTEMPTS):
        await _measure(target)
        if await _judged(target, range(attempt * PROMPTS, (attempt + 1) * PROMPTS)):
            return
    raise TargetFailed("self-test: no draft was judged")


async def _judged(target: Target, prompts: Iterable[int]) -> int:
    """Return how many draft tokens were judged. Raises TargetFailed if they change the text."""
    judged = 0
    for sampling in _SAMPLINGS:
        complaints: list[str] = []
        for i in prompts:
            complaint, used = await _compare(target, _request(target.facts, sampling, i))
            judged += used
            if complaint is None:
                break
            structlog.get_logger("verifier").warning("self_test_repeated", complaint=complaint)
            complaints.append(complaint)
        else:
            raise TargetFailed(f"self-test: {'; '.join(complaints)}")
    return judged


async def _measure(target: Target) -> None:
    """Run passes with more and more rows, from one on. The engine's machine observes them."""
    facts, latency = target.facts, PassLatency()
    for rows in unmeasured(latency, min(facts.limits.max_verify, facts.limits.max_ahead)):
        fill: Fill = "never" if rows > 1 else "always"
        prompt, most = (0, 0), 1 + rows
        request = Open(
            facts.model, facts.vocabulary, prompt, _SAMPLINGS[0], 0, most, (), fill=fill
        )
        _, last = await _run(target, f"{rows}-rows", request, (0,) * rows, commits=2)
        took_s = last.pass_s if isinstance(last, Commit) else 0.0
        latency.observe(rows, max(MIN_PASS_S, took_s))


def _request(facts: ModelFacts, sampling: Sampling, i: int) -> Open:
    tokens = range(i * PROMPT_TOKENS, (i + 1) * PROMPT_TOKENS)
    prompt = tuple(token % facts.vocabulary_size for token in tokens)
    return Open(facts.model, facts.vocabulary, prompt, sampling, 7 + i, TOKENS, ())


async def _compare(target: Target, request: Open) -> tuple[str | None, int]:
    """Return how draft tokens changed the text of a request (None: not at all), and how many of
    them were judged."""
    name = f"{request.seed}-{request.sampling.temperature:g}"
    plain, _ = await _run(target, f"{name}-plain", request)
    right = plain[:DRAFTED]
    wrong = [*right[:-1], (right[-1] + 1) % target.facts.vocabulary_size]
    judged = 0
    for kind, drafts in {"right": right, "wrong": wrong}.items():
        found, last = await _run(target, f"{name}-{kind}", request, drafts)
        judged += last.totals.judged if isinstance(last, Finish) else 0
        if found != plain:
            return f"with {kind} drafts {found}, without {plain}", judged
    return None, judged


async def _run(
    target: Target,
    name: str,
    request: Open,
    drafts: Sequence[TokenId] = (),
    *,
    commits: int | None = None,
) -> tuple[list[TokenId], Commit | Finish]:
    """Run a session to its end, or to this many commits; return its text and the last message.
    Its edge sends its draft tokens after the first committed token, at most max_ahead."""
    most = target.facts.limits.max_ahead
    session, text, count = f"self-test-{name}", list[TokenId](), 0
    replies = target.serve(session, request)
    try:
        async with asyncio.timeout(WITHIN_S), aclosing(replies):
            async for reply in replies:
                if isinstance(message := reply.message, Finish):
                    return text, message
                if isinstance(message, Commit):
                    count += 1
                    text.extend(message.tokens)
                    if count == 1 and (rest := tuple(drafts[len(text) :][:most])):
                        await target.push(session, Framed(Draft(1, len(text), 0, rest)))
                    if count == commits:
                        return text, message
    except TimeoutError:
        late = f"self-test: {session} had {count} commits in {WITHIN_S:g} s"
        raise TargetFailed(late) from None
    raise TargetFailed("self-test: the session had no Finish")
