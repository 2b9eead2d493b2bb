"""Records traces: the target generates its answer, the draft model drafts at each position of
it, and where it misses also what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from bench.data.prompts import Prompt, sampling
from bench.traces.files import Ids, Trace
from gateway.ports import Message
from models.llama import Context, Logits, Model
from models.segments import Segment
from models.tokenizer import GgufTokenizer
from speculation.protocol.messages import Sampling, TokenId
from speculation.sampling.distributions import distribution, top
from speculation.sampling.draft_sampler import DraftSampler, coupled
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.noise import place

KEPT: Final = 256
"""Tokens kept of each distribution: they hold more than 99.9 % of nearly every one."""

AFTER_MISS: Final = 16
"""Draft tokens kept after a miss: a few more than are drafted before its Commit arrives."""

CONTEXT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Subject:
    """What a trace is recorded of. prompt: its tokens."""

    family: str
    prompt_id: str
    prompt: Sequence[TokenId]
    temperature: float
    seed: int

    @property
    def sampling(self) -> Sampling:
        return sampling(self.temperature)


@dataclass(frozen=True, slots=True)
class Recording:
    target: Path
    draft: Path
    prompts: Sequence[Prompt]
    temperatures: Sequence[float]
    tokens: int
    seed: int

    @property
    def total(self) -> int:
        return len(self.prompts) * len(self.temperatures)

    def traces(self, folder: Path) -> Iterator[Path]:
        """Record one prompt after another at each temperature; yield the files.

        Raises ModelError, OSError, or ValueError for a prompt that the template rejects.
        """
        with (
            closing(Model(self.target)) as target,
            closing(Model(self.draft)) as draft,
            closing(Context(target, CONTEXT_TOKENS)) as target_context,
            closing(Context(draft, CONTEXT_TOKENS)) as draft_context,
        ):
            tokenizer = GgufTokenizer(target)
            for each in self.prompts:
                prompt = tokenizer.chat([Message("user", each.prompt)])
                for temperature in self.temperatures:
                    subject = Subject(each.family, each.id, prompt, temperature, self.seed)
                    answer, p = _generate(target_context, subject, self.tokens)
                    yield trace(draft_context, subject, answer, p).save(folder)


def trace(
    draft: Context, subject: Subject, answer: Sequence[TokenId], p: Sequence[Logits] = ()
) -> Trace:
    """Draft along an answer. Sequence 0 of the context is overwritten.

    p: the target's logits, float32[V] for each token of the answer; empty: they are not known.
    """
    sampler = coupled(subject.sampling, subject.seed, len(subject.prompt))
    q, after_miss_tokens, after_miss_confidences = _draft(draft, subject, answer, sampler)
    tokens = np.array(answer, np.int32)
    if p:
        target_tokens, target_logits = _shortened(p)
        overlap = [_overlap(*both, subject.sampling) for both in zip(p, q, strict=True)]
    else:
        target_tokens, target_logits = tokens[:, None], np.zeros((len(tokens), 1), np.float32)
        overlap = [np.nan] * len(tokens)
    return Trace(
        subject.family, subject.prompt_id, subject.temperature, subject.seed,
        np.array(subject.prompt, np.int32), tokens, target_tokens, target_logits,
        *_shortened(q), after_miss_tokens, after_miss_confidences,
        np.array(overlap, np.float32),
    )  # fmt: skip


def _generate(
    target: Context, subject: Subject, tokens: int
) -> tuple[list[TokenId], list[Logits]]:
    """Return the target's answer, and its logits at each position."""
    answer: list[TokenId] = []
    p: list[Logits] = []
    stops = target.model.stop_tokens()
    _prefill(target, subject.prompt[:-1])
    while len(answer) < tokens and not stops.intersection(answer[-1:]):
        last = answer[-1] if answer else subject.prompt[-1]
        target.decode([Segment(0, target.length(0), [last])])
        p.append(target.logits(0).copy())
        at = place(len(subject.prompt), len(answer))
        answer.append(distribution(p[-1], subject.sampling).coupled(subject.seed, at))
    return answer, p


def _draft(
    draft: Context, subject: Subject, answer: Sequence[TokenId], sampler: DraftSampler
) -> tuple[list[Logits], Ids, Logits]:
    """Return the draft model's logits at each position, and what follows its misses."""
    _prefill(draft, subject.prompt[:-1])
    logits: list[Logits] = []
    tokens = np.full((len(answer), AFTER_MISS), -1, np.int32)
    confidences = np.zeros((len(answer), AFTER_MISS), np.float32)
    for position, (token, expected) in enumerate(pairwise((subject.prompt[-1], *answer))):
        draft.decode([Segment(0, draft.length(0), [token])])
        logits.append(draft.logits(0).copy())
        drafted = sampler(logits[-1], position)
        if drafted.token != expected:
            after = _after_miss(draft, drafted, position, sampler)
            tokens[position] = [each.token for each in after]
            confidences[position] = [each.confidence for each in after]
    return logits, tokens, confidences


def _after_miss(
    draft: Context, missed: DraftToken, position: int, sampler: DraftSampler
) -> list[DraftToken]:
    """Return what is drafted after a draft token that missed, and remove it from the cache."""
    length = draft.length(0)
    chain = [missed]
    for n in range(AFTER_MISS):
        draft.decode([Segment(0, length + n, [chain[-1].token])])
        chain.append(sampler(draft.logits(0), position + 1 + n))
    draft.truncate(0, length)
    return chain[1:]


def _prefill(context: Context, tokens: Sequence[int]) -> None:
    context.truncate(0, 0)
    for start in range(0, len(tokens), context.limits.batch_tokens):
        chunk = tokens[start : start + context.limits.batch_tokens]
        context.decode([Segment(0, start, chunk, logits=0)])


def _shortened(rows: Sequence[Logits]) -> tuple[Ids, Logits]:
    """Return, as a Trace has them, the KEPT likeliest tokens of each row, and their
    log-probabilities at temperature 1. rows: float32[V] each."""
    kept = [_shortened_row(row) for row in rows]
    return np.array([tokens for tokens, _ in kept]), np.array([logits for _, logits in kept])


def _shortened_row(logits: Logits) -> tuple[Ids, Logits]:
    tokens = top(logits, KEPT)
    shifted = logits - logits.max()
    total = np.log(np.exp(shifted, dtype=np.float64).sum())
    return tokens.astype(np.int32), (shifted[tokens] - total).astype(np.float32)


def _overlap(p: Logits, q: Logits, settings: Sampling) -> float:
    dense = np.zeros((2, len(p)))
    for row, logits in zip(dense, (p, q), strict=True):
        kept = distribution(logits, settings)
        row[kept.tokens] = kept.p
    return float(np.minimum(dense[0], dense[1]).sum())
