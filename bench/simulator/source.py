"""What the models say in one answer: made up from an acceptance, or replayed from a Trace.

The target's answer is fixed: judged `coupled`, it is a function of prompt and seed. So is the
draft's guess after any right beginning. After a wrong one every guess is wrong too, for the
chain is broken whatever it goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import numpy as np

from bench.traces import Trace
from speculation.drafting import Guess
from speculation.laws import GREEDY_BELOW, Law
from speculation.messages import TokenId
from speculation.noise import gumbel, place

WRONG: Final = 100_000
"""A token that is in no answer; three bytes on the wire, as most of a large vocabulary."""

VOCABULARY: Final = 1 << 18
DRAFT_TOKENS: Final = 64
"""Candidates of a draft: as many as the edge looks at."""


class Source:
    """tokens, guesses: int[n] each; guesses[i] is the draft's token after tokens[:i]."""

    def __init__(
        self,
        prompt: Sequence[TokenId],
        tokens: Sequence[TokenId],
        guesses: Sequence[TokenId],
        confidences: Sequence[float],
    ) -> None:
        self.prompt = tuple(prompt)
        self.tokens = list(tokens)
        self._guesses = list(guesses)
        self._confidences = list(confidences)
        self._laws = [Law(np.array([token]), np.ones(1)) for token in self.tokens]

    def law(self, position: int) -> Law:
        """Return the target's law as its noise left it: the one token it says."""
        return self._laws[position]

    def guess(self, context: Sequence[TokenId]) -> Guess:
        """Return what the draft says after `context`, output tokens only."""
        position = len(context)
        token = self._guesses[position]
        if list(context) != self.tokens[:position]:
            token = WRONG
        return Guess(token, self._confidences[position])

    def right(self, position: int) -> bool:
        """Return whether the draft says the target's token here, given a right beginning."""
        return self._guesses[position] == self.tokens[position]


def synthetic(acceptance: float, tokens: int, seed: int = 0, prompt_tokens: int = 0) -> Source:
    """Return an answer where each draft is right with the same probability, independently."""
    chance = Random(seed)
    answer = list(range(tokens))
    guesses = [token if chance.random() < acceptance else WRONG for token in answer]
    return Source((0,) * prompt_tokens, answer, guesses, [acceptance] * tokens)


Estimate = Callable[[Law, int, int, float], float]
"""Estimate(q, seed, at, temperature): how likely the coupled choice of q is the target's."""


def traced(trace: Trace, estimate: Estimate | None = None) -> Source:
    """Return the answer of a trace, with the guesses the edge makes from its draft laws."""
    estimate = estimate or probability
    guesses, confidences = [], []
    for position, (tokens, logits) in enumerate(
        zip(trace.draft_tokens, trace.draft_logits, strict=True)
    ):
        at = place(len(trace.prompt), position)
        q = draft_law(tokens, logits, trace.temperature)
        greedy = trace.temperature < GREEDY_BELOW
        guesses.append(int(tokens[0]) if greedy else q.coupled(trace.seed, at))
        confidences.append(estimate(q, trace.seed, at, trace.temperature))
    return Source(trace.prompt.tolist(), trace.tokens.tolist(), guesses, confidences)


def draft_law(tokens: np.ndarray, logits: np.ndarray, temperature: float) -> Law:
    """Return q at `temperature`; below GREEDY_BELOW at 1, for its confidences."""
    scale = 1.0 if temperature < GREEDY_BELOW else temperature
    weights = np.exp((logits[:DRAFT_TOKENS] - logits[0]).astype(np.float64) / scale)
    return Law(tokens[:DRAFT_TOKENS].astype(np.int64), weights / weights.sum())


def probability(q: Law, seed: int, at: int, temperature: float) -> float:
    """Estimate by q itself."""
    if temperature < GREEDY_BELOW:
        return float(q.p[0])
    return q.of(q.coupled(seed, at))


def race(q: Law, seed: int, at: int, temperature: float) -> float:
    """Return the gap between the best and the second of log q + gumbel; at 0 of log q."""
    scores = np.log(q.p)
    if temperature >= GREEDY_BELOW:
        scores = scores + gumbel(seed, at, q.tokens)
    second, best = np.partition(scores, -2)[-2:]
    return float(best - second)
