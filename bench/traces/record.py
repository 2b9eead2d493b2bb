"""Records traces: the target writes its answer, the draft is asked at every position of it, and
where it is wrong also what it would say next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from bench.traces.files import Ids, Trace
from models.llama import Context, Logits, Model
from models.segments import Segment
from speculation.protocol.messages import Sampling, TokenId
from speculation.sampling.distributions import distribution, top
from speculation.sampling.draft_sampler import DraftSampler, coupled
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.noise import place

KEPT: Final = 256
"""Tokens kept of each distribution: they hold more than 99.9 % of nearly every one."""

ASTRAY: Final = 16
"""Guesses kept after a wrong one: a few more than follow it before its Commit comes."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to record."""

    family: str
    prompt_id: str
    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the draft says along an answer of n tokens: float32[V] at each, and as in Trace."""

    logits: list[Logits]
    astray_tokens: Ids
    astray_confidences: Logits


def record(target: Context, draft: Context, question: Question) -> Trace:
    """Run both models over one prompt. Sequence 0 of both contexts is overwritten."""
    answer, p = _write(target, question)
    pick = coupled(question.sampling, question.seed, len(question.prompt))
    read = read_draft(draft, question.prompt, answer, pick)
    return Trace(
        question.family,
        question.prompt_id,
        question.sampling.temperature,
        question.seed,
        np.array(question.prompt, np.int32),
        np.array(answer, np.int32),
        *shortened(p),
        *shortened(read.logits),
        read.astray_tokens,
        read.astray_confidences,
        np.array(
            [_overlap(a, b, question.sampling) for a, b in zip(p, read.logits, strict=True)],
            np.float32,
        ),
    )


def _write(target: Context, question: Question) -> tuple[list[int], list[Logits]]:
    answer: list[int] = []
    p: list[Logits] = []
    context = list(question.prompt)
    stops = target.model.stop_tokens()
    _prefill(target, context[:-1])
    while len(answer) < question.tokens and not stops.intersection(answer[-1:]):
        target.decode([Segment(0, len(context) - 1, context[-1:])])
        p.append(target.logits(0).copy())
        chosen = distribution(p[-1], question.sampling)
        answer.append(chosen.coupled(question.seed, place(len(question.prompt), len(answer))))
        context.append(answer[-1])
    return answer, p


def read_draft(
    draft: Context, prompt: Sequence[TokenId], answer: Sequence[TokenId], pick: DraftSampler
) -> Reading:
    """Ask the draft at each position of the answer. Sequence 0 is overwritten.

    pick: the edge's guess of logits.
    """
    _prefill(draft, prompt[:-1])
    logits: list[Logits] = []
    tokens = np.full((len(answer), ASTRAY), -1, np.int32)
    confidences = np.zeros((len(answer), ASTRAY), np.float32)
    for position, (token, said) in enumerate(pairwise((prompt[-1], *answer))):
        draft.decode([Segment(0, draft.length(0), [token])])
        logits.append(draft.logits(0).copy())
        guess = pick(logits[-1], position)
        if guess.token != said:
            astray = _go_on(draft, guess, position, pick)
            tokens[position] = [after.token for after in astray]
            confidences[position] = [after.confidence for after in astray]
    return Reading(logits, tokens, confidences)


def _go_on(
    draft: Context, guess: DraftToken, position: int, pick: DraftSampler
) -> list[DraftToken]:
    """Return what the draft says after its guess, and forget it."""
    length = draft.length(0)
    said = [guess]
    for n in range(ASTRAY):
        draft.decode([Segment(0, length + n, [said[-1].token])])
        said.append(pick(draft.logits(0), position + 1 + n))
    draft.truncate(0, length)
    return said[1:]


def _prefill(context: Context, tokens: Sequence[int]) -> None:
    context.truncate(0, 0)
    for start in range(0, len(tokens), context.limits.batch_tokens):
        chunk = tokens[start : start + context.limits.batch_tokens]
        context.decode([Segment(0, start, chunk, logits=0)])


def shortened(rows: Sequence[Logits]) -> tuple[Ids, Logits]:
    """Return, as a Trace has them, the KEPT likeliest tokens of each row, and their
    log-probabilities at temperature 1. rows: float32[V] each."""
    kept = [_shortened(row) for row in rows]
    return np.array([tokens for tokens, _ in kept]), np.array([logits for _, logits in kept])


def _shortened(logits: Logits) -> tuple[Ids, Logits]:
    tokens = top(logits, KEPT)
    shifted = logits - logits.max()
    total = np.log(np.exp(shifted, dtype=np.float64).sum())
    return tokens.astype(np.int32), (shifted[tokens] - total).astype(np.float32)


def _overlap(p: Logits, q: Logits, sampling: Sampling) -> float:
    dense = np.zeros((2, len(p)))
    for row, logits in zip(dense, (p, q), strict=True):
        chosen = distribution(logits, sampling)
        row[chosen.tokens] = chosen.p
    return float(np.minimum(dense[0], dense[1]).sum())


def open_pair(target: Model, draft: Model, context_tokens: int) -> tuple[Context, Context]:
    """Return one-sequence contexts over both models. The caller closes them."""
    return Context(target, context_tokens), Context(draft, context_tokens)
