"""A Source is the models' output for one answer, made up from an acceptance or from a Trace.

The target's answer is fixed: judged `coupled`, it is a function of prompt and seed. So is the
draft token after any context that the target commits. After a miss the chain is broken whatever
follows: a trace has the next draft tokens after a miss, and other tokens are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random
from typing import Final

import numpy as np

from bench.prompts import sampling
from bench.traces import Ids, Logits, Text, Trace
from edge_agent.draft.drafter import drafts_while_matching
from local_models.llama_cpp.prefix import common_prefix
from speculation.coupled import SHARPNESS
from speculation.coupled import sampler as draft_sampler
from speculation.distributions import Distribution
from speculation.draft_token import DraftToken
from speculation.noise import gumbel, noise_index

WRONG: Final = 100_000
"""Tokens from this one on are in no answer. They take three bytes on the wire, like most tokens
of a large vocabulary. All of an answer are different, or the edge could look them up."""

VOCABULARY: Final = 1 << 20
Drafted = list[DraftToken]


class Source:
    """A Source has one answer of n tokens, and the draft model's output for it.

    drafts[i]: the draft token after tokens[:i].
    after_miss[i]: the draft tokens after drafts[i], if that is not the target's token.
    ranks[i]: the number of tokens that the draft model prefers to the target's, drafts[i] not
    counted; inf if unknown.
    predicted: the answer that the client expects.
    """

    def __init__(
        self, prompt: Text, tokens: Text, drafts: Sequence[DraftToken],
        after_miss: Sequence[Sequence[DraftToken]] = (), ranks: Sequence[float] = (),
        predicted: Text = (),
    ) -> None:  # fmt: skip
        self.prompt = tuple(prompt)
        self.predicted = tuple(predicted)
        self.tokens = list(tokens)
        self._drafts = list(drafts)
        self._after_miss = list(after_miss) or [()] * len(self.tokens)
        self.ranks = list(ranks) or [inf] * len(self.tokens)
        self.distributions = [Distribution(np.array([t]), np.ones(1)) for t in self.tokens]
        """These are the target's distributions after its noise: each has only the generated
        token."""

    @property
    def acceptance(self) -> float:
        """Return the share of tokens that are drafted right in the right context."""
        pairs = zip(self._drafts, self.tokens, strict=True)
        return sum(drafted.token == token for drafted, token in pairs) / len(self.tokens)

    def draft(self, context: Text) -> DraftToken:
        """Return the draft token after `context`, which has output tokens only."""
        position, at = len(context), common_prefix(context, self.tokens)
        if at == position:
            return self._drafts[position]
        since = list(context[at:])  # the miss and the tokens after it
        recorded = [each.token for each in (self._drafts[at], *self._after_miss[at])]
        if since == recorded[: len(since)] and len(since) < len(recorded):
            return self._after_miss[at][len(since) - 1]
        return DraftToken(WRONG + position, self._drafts[position].confidence)

    def drafts(self, context: Text, ahead: Text) -> Drafted:
        """Return the result of a step that also reads `ahead` (edge_agent...drafter)."""
        room = len(self.tokens) - len(context) - 1
        return drafts_while_matching(lambda n: self.draft([*context, *ahead[:n]]), ahead[:room])


def believed(tokens: Text, confidence: float) -> Drafted:
    """Return draft tokens that all have the same confidence."""
    return [DraftToken(token, confidence) for token in tokens]


def guessed(answer: Text, right: float, chance: Random, confidence: float) -> Drafted:
    """Return draft tokens of which each is the answer's with the same probability."""
    pairs = enumerate(answer)
    tokens = [token if chance.random() < right else WRONG + i for i, token in pairs]
    return believed(tokens, confidence)


def synthetic(
    acceptance: float, tokens: int, seed: int = 0, prompt_tokens: int = 0, hits: float = 0.0
) -> Source:
    """Return an answer whose draft tokens are all accepted with the same probability. hits: the
    probability that, after a rejection, the draft model's next best token is the target's."""
    chance = Random(seed)
    answer = list(range(tokens))
    drafts = [token if chance.random() < acceptance else WRONG for token in answer]
    ranks = [0 if chance.random() < hits else inf for _ in answer]
    return Source((0,) * prompt_tokens, answer, believed(drafts, acceptance), ranks=ranks)


def traced(trace: Trace) -> Source:
    """Return the answer of a trace, with the draft tokens that the edge samples for it."""
    sampler = draft_sampler(sampling(trace.temperature), trace.seed, len(trace.prompt))
    rows = enumerate(zip(trace.draft_tokens, trace.draft_logits, strict=True))
    drafts = [sampler(dense(tokens, logits), position) for position, (tokens, logits) in rows]
    after_miss = trace.after_miss_tokens.tolist(), trace.after_miss_confidences.tolist()
    after = [
        [DraftToken(t, c) for t, c in zip(tokens, confidences, strict=True) if t >= 0]
        for tokens, confidences in zip(*after_miss, strict=True)
    ]
    prompt, answer = trace.prompt.tolist(), trace.tokens.tolist()
    return Source(prompt, answer, drafts, after, _ranks(trace))


def _ranks(trace: Trace) -> list[float]:
    ranks: list[float] = []
    rows = zip(trace.tokens, trace.draft_tokens, trace.draft_logits, strict=True)
    for position, (target, tokens, logits) in enumerate(rows):
        scores = logits
        if trace.temperature:
            noise = gumbel(trace.seed, noise_index(len(trace.prompt), position), tokens)
            scores = SHARPNESS / trace.temperature * logits + noise
        known = scores[tokens == target]
        ranks.append(float(np.count_nonzero(scores > known)) - 1 if known.size else inf)
    return ranks


def dense(tokens: Ids, logits: Logits) -> Logits:
    """Return logits over the vocabulary; those that were not kept are -inf."""
    row = np.full(int(tokens.max()) + 1, -np.inf, np.float32)
    row[tokens] = logits
    return row
