"""Checks at start that a session generates the same text with and without draft tokens.

First the engine learns the latency of passes by their rows, so that no client pays for that.

The test finds changes inside vLLM that no missing name shows, before a client meets them. The
draft tokens are all right, wrong in the last one, or absent; greedy first, then sampled.

A pass of another shape may decide a near-tie differently: in bfloat16 about once in 600
tokens, and several times as often with kernels that change with the number of rows. So texts
are compared by teacher forcing: after a token that differs, the session goes on with that of
the text without draft tokens. A difference is an error unless the other token was nearly as
good in the same context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

import numpy as np
import structlog

from speculation.latency import PassLatency, unmeasured
from speculation.messages import Commit, Draft, Fill, Finish, Open, Sampling, TokenLogprob
from speculation.model_facts import ModelFacts, TokenId
from speculation.noise import gumbel, noise_index
from speculation.verify_machine import MIN_PASS_S
from speculation.wire import Framed
from verifier.target import Target, TargetFailed

TOKENS: Final = 12
DRAFTED: Final = 9
"""This many of TOKENS are drafted; a wrong one is the last of these."""

ATTEMPTS: Final = 3
"""If no draft token was judged, everything is tried this many times: on a busy machine a slow
pass may make rows look too expensive to judge any."""

PROMPT_TOKENS: Final = 32

WITHIN_S: Final = 120.0
"""A session may take this long; one without output must not keep the service loading."""

_SAMPLINGS: Final = (Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.95))


@dataclass(frozen=True, slots=True)
class Precision:
    """What an engine can tell apart."""

    near: float = 0.25
    """Two logits that differ by no more are a near-tie: 2 ulp of the model's type where logits
    are below 32, here those of bfloat16."""

    alternatives: int = 5
    """A session may ask for the log-probabilities of this many other tokens."""


async def self_test(target: Target, precision: Precision) -> None:
    """Raise TargetFailed unless draft tokens leave the text unchanged, but for near-ties, and
    some are judged. Some may stay unjudged, if rows are expensive or one pass was slow."""
    for attempt in range(ATTEMPTS):
        await _measure(target)
        requests = [_request(target.facts, sampling, attempt) for sampling in _SAMPLINGS]
        if sum([await _compare(target, each, precision) for each in requests]):
            return
    raise TargetFailed("self-test: no draft was judged")


async def _measure(target: Target) -> None:
    """Run passes with more and more rows, from one on. The engine's machine observes them."""
    facts, latency = target.facts, PassLatency()
    for rows in unmeasured(latency, min(facts.limits.max_verify, facts.limits.max_ahead)):
        fill: Fill = "never" if rows > 1 else "always"
        prompt, most = (0, 0), 1 + rows
        request = Open(
            facts.model, facts.vocabulary, prompt, _SAMPLINGS[0], 0, most, (), fill=fill
        )
        text = await _run(target, f"{rows}-rows", request, (0,) * rows, commits=2)
        took_s = text.last.pass_s if isinstance(text.last, Commit) else 0.0
        latency.observe(rows, max(MIN_PASS_S, took_s))


def _request(facts: ModelFacts, sampling: Sampling, i: int) -> Open:
    tokens = range(i * PROMPT_TOKENS, (i + 1) * PROMPT_TOKENS)
    prompt = tuple(token % facts.vocabulary_size for token in tokens)
    return Open(facts.model, facts.vocabulary, prompt, sampling, 7 + i, TOKENS, ())


async def _compare(target: Target, request: Open, precision: Precision) -> int:
    """Return how many draft tokens of a request were judged. Raises TargetFailed if they
    changed a token that was no near-tie."""
    name = f"{request.seed}-{request.sampling.temperature:g}"
    request = replace(request, top_logprobs=precision.alternatives)
    plain = await _run(target, f"{name}-plain", request)
    right = plain.tokens[:DRAFTED]
    wrong = [*right[:-1], (right[-1] + 1) % target.facts.vocabulary_size]
    judged = 0
    for kind, drafts in {"right": right, "wrong": wrong}.items():
        at: int | None = 0
        for attempt in count():
            forced = replace(request, committed=tuple(plain.tokens[:at]))
            tokens = await _run(target, f"{name}-{kind}-{attempt}", forced, drafts)
            judged += tokens.last.totals.judged if isinstance(tokens.last, Finish) else 0
            if (at := _differs(plain.tokens, tokens.tokens)) is None:
                break
            complaint = f"with {kind} drafts {tokens.tokens}, without {plain.tokens}"
            if _lead(plain, request, at, tokens.tokens) > precision.near:
                raise TargetFailed(f"self-test: {complaint}")
            structlog.get_logger("verifier").warning("self_test_near_tie", complaint=complaint)
            if (at := at + 1) == len(plain.tokens):
                break
    return judged


def _differs(tokens: Sequence[TokenId], others: Sequence[TokenId]) -> int | None:
    """Return the first position at which two texts differ; None if they are equal."""
    pairs = enumerate(zip(tokens, others, strict=False))
    if (place := next((i for i, (a, b) in pairs if a != b), None)) is not None:
        return place
    return None if len(tokens) == len(others) else min(len(tokens), len(others))


def _lead(plain: _Text, request: Open, at: int, others: Sequence[TokenId]) -> float:
    """Return by how much, at least, the token of the text without draft tokens was better than
    the other one: the difference of their logits and, if they are drawn, of their noise. A
    token beside the most probable ones counts as the last of these; inf without any."""
    if at >= min(len(plain.logprobs), len(others)):
        return float("inf")
    token, other, known = plain.tokens[at], others[at], plain.logprobs[at]
    listed = dict(known.top)
    lead = known.logprob - listed.get(other, min([known.logprob, *listed.values()]))
    if temperature := request.sampling.temperature:
        index = noise_index(len(request.prompt), at)
        noise = gumbel(request.seed, index, np.array([token, other]))
        lead += temperature * float(noise[0] - noise[1])
    return lead


@dataclass(frozen=True, slots=True)
class _Text:
    """A session's text, and the last message that was read of it."""

    tokens: list[TokenId]
    logprobs: list[TokenLogprob]
    last: Commit | Finish


async def _run(
    target: Target,
    name: str,
    request: Open,
    drafts: Sequence[TokenId] = (),
    *,
    commits: int | None = None,
) -> _Text:
    """Run a session to its end, or to this many commits, and return its text. Its edge sends
    its draft tokens after the first committed token, at most max_ahead."""
    most = target.facts.limits.max_ahead
    session, text, rounds = f"self-test-{name}", list(request.committed), 0
    logprobs = list[TokenLogprob]()
    replies = target.replies(session, request)
    try:
        async with asyncio.timeout(WITHIN_S), aclosing(replies):
            async for reply in replies:
                if isinstance(message := reply.message, Finish):
                    return _Text(text, logprobs, message)
                if isinstance(message, Commit):
                    rounds += 1
                    text.extend(message.tokens)
                    logprobs.extend(message.logprobs or ())
                    if rounds == 1 and (rest := tuple(drafts[len(text) :][:most])):
                        await target.push(session, Framed(Draft(1, len(text), 0, rest)))
                    if rounds == commits:
                        return _Text(text, logprobs, message)
    except TimeoutError:
        late = f"self-test: {session} had {rounds} commits in {WITHIN_S:g} s"
        raise TargetFailed(late) from None
    raise TargetFailed("self-test: the session had no Finish")
