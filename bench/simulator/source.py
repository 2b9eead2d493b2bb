"""What the models say in one answer: made up from an acceptance, or replayed from a Trace.

The target's answer is fixed: judged `coupled`, it is a function of prompt and seed. So is the
draft's guess after any right beginning. After a wrong one the chain is broken whatever it goes
on with: a trace holds what the draft says after its own guess, elsewhere guesses are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

import numpy as np

from bench.run.prompts import sampling
from bench.traces.files import Ids, Logits, Trace
from edge_agent.draft_model.drafter import drafts_while_matching
from models.kv_reuse import common_prefix
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Distribution
from speculation.sampling.draft_sampler import coupled
from speculation.sampling.draft_token import DraftToken

WRONG: Final = 100_000
"""Tokens from here on are in no answer; three bytes on the wire, as most of a large vocabulary.
No two wrong guesses of an answer are the same, for then the edge could look them up."""

VOCABULARY: Final = 1 << 20


class Source:
    """tokens, guesses: int[n] each; guesses[i] is the draft's token after tokens[:i].
    confidences: float[n]. astray[i]: what it says after guesses[i], if that is wrong."""

    def __init__(
        self,
        prompt: Sequence[TokenId],
        tokens: Sequence[TokenId],
        guesses: Sequence[TokenId],
        confidences: Sequence[float],
        astray: Sequence[Sequence[DraftToken]] = (),
    ) -> None:
        self.prompt = tuple(prompt)
        self.tokens = list(tokens)
        self._guesses = list(guesses)
        self._confidences = list(confidences)
        self._astray = list(astray) or [()] * len(self.tokens)
        self._laws = [Distribution(np.array([token]), np.ones(1)) for token in self.tokens]

    def distribution(self, position: int) -> Distribution:
        """Return the target's distribution as its noise left it: the one token it says."""
        return self._laws[position]

    def guess(self, context: Sequence[TokenId]) -> DraftToken:
        """Return what the draft says after `context`, output tokens only."""
        position = len(context)
        at = common_prefix(context, self.tokens)
        if at < position:
            return self._wrong(context, at)
        return DraftToken(self._guesses[position], self._confidences[position])

    def _wrong(self, context: Sequence[TokenId], at: int) -> DraftToken:
        """Return what the draft says after a context that leaves the answer at `at`."""
        position, since = len(context), list(context[at:])
        said = [self._guesses[at], *(guess.token for guess in self._astray[at])]
        if since == said[: len(since)] and len(since) < len(said):
            return self._astray[at][len(since) - 1]
        return DraftToken(WRONG + position, self._confidences[position])

    def drafts(self, context: Sequence[TokenId], ahead: Sequence[TokenId]) -> list[DraftToken]:
        """Return what a step says that reads `ahead` too: see DraftSlot.step."""
        room = len(self.tokens) - len(context) - 1
        return drafts_while_matching(lambda n: self.guess([*context, *ahead[:n]]), ahead[:room])


def synthetic(acceptance: float, tokens: int, seed: int = 0, prompt_tokens: int = 0) -> Source:
    """Return an answer where each draft is right with the same probability, independently."""
    chance = Random(seed)
    answer = list(range(tokens))
    guesses = [token if chance.random() < acceptance else WRONG for token in answer]
    return Source((0,) * prompt_tokens, answer, guesses, [acceptance] * tokens)


def traced(trace: Trace) -> Source:
    """Return the answer of a trace, with the guesses the edge makes of its draft's logits."""
    pick = coupled(sampling(trace.temperature), trace.seed, len(trace.prompt))
    guesses = [
        pick(dense(tokens, logits), position)
        for position, (tokens, logits) in enumerate(
            zip(trace.draft_tokens, trace.draft_logits, strict=True)
        )
    ]
    return Source(
        trace.prompt.tolist(),
        trace.tokens.tolist(),
        [guess.token for guess in guesses],
        [guess.confidence for guess in guesses],
        list(map(_astray, trace.astray_tokens, trace.astray_confidences)),
    )


def _astray(tokens: Ids, confidences: Logits) -> list[DraftToken]:
    pairs = zip(tokens.tolist(), confidences.tolist(), strict=True)
    return [DraftToken(token, confidence) for token, confidence in pairs if token >= 0]


def dense(tokens: Ids, logits: Logits) -> Logits:
    """Return logits over the vocabulary as far as it is needed; those not kept are -inf."""
    row = np.full(int(tokens.max()) + 1, -np.inf, np.float32)
    row[tokens] = logits
    return row
