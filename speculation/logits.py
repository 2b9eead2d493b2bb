"""Adjusts logits as a request asks, before temperature and cuts, and joins such adjustments.

The settings are applied in vLLM's order, and a thinking budget after them:

    logit_bias          is added.
    repetition_penalty  divides a positive logit of each token that the prompt or the answer
                        has, and multiplies a negative one (arXiv:1909.05858). It is done as
                        multiplication by 1 / penalty, rounded.
    frequency_penalty   is subtracted for each time that the answer has the token,
    presence_penalty    once if the answer has the token at all (OpenAI's definition).
    min_tokens         bars the stop tokens before this position, unless nothing else is left.

The judge of either target and the edge apply the same function, in float32: the judge because
the request asks for it, the edge so that it does not draft what must be rejected. The
function depends only on the settings and the text before a position, draft tokens included,
so it is the same in any pass and on any host. It touches only the logits of tokens that a
setting names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from speculation.distributions import Logits
from speculation.logit_settings import LogitSettings
from speculation.messages import Open
from speculation.model_facts import TokenId
from speculation.noise import Tokens
from speculation.thinking_budget import BUDGET, budget

Adjust = Callable[[Logits, Sequence[TokenId]], Logits]
"""Adjust(logits, output) returns the adjusted logits (float32[V]) of the position after
`output`, which holds all output tokens before it. It never changes its arguments."""

FEW: Final = 32
"""Up to this many tokens are added one by one. A token takes about 10 us; sorting the whole
text takes 300 us or more, depending on its length."""


def adjustment(request: Open, *, vocabulary_size: int) -> Adjust | None:
    """Return the adjustment that a request asks for, if any. Raise InvalidSetting.

    The function keeps the last text that it was called with, so an extended text costs little.
    It serves one session, and one thread at a time.
    """
    settings = LogitSettings.of(request, vocabulary_size=vocabulary_size)
    first = Adjustment.first(settings, request.prompt, request.stop_tokens)
    adjust = None if first is None else _Follower(first)
    if BUDGET not in request.sampling.extras:
        return adjust
    return in_turn(adjust, budget(request, vocabulary_size=vocabulary_size))


def in_turn(first: Adjust | None, then: Adjust | None) -> Adjust | None:
    """Return an Adjust that applies both in order. None is an Adjust that changes nothing."""
    if first is None or then is None:
        return first or then
    return lambda logits, output: then(first(logits, output), output)


@dataclass(frozen=True, slots=True, eq=False)
class SeenTokens:
    """The distinct tokens of a text, and how often the answer has each of them, for penalties.

    It is immutable, so that each row of a pass can have its own, with the draft tokens before
    it. Adding a token copies an array, which takes microseconds.
    """

    tokens: Tokens  # int64[n], each once
    counts: Logits  # float32[n]; 0 for tokens that only the prompt has

    @staticmethod
    def of(prompt: Sequence[TokenId]) -> SeenTokens:
        tokens = np.unique(np.asarray(prompt, np.int64))
        return SeenTokens(tokens, np.zeros(len(tokens), np.float32))

    def after(self, output: Sequence[TokenId]) -> SeenTokens:
        """Return the tokens of the text with these output tokens appended."""
        if len(output) > FEW:
            return self._counted(np.asarray(output, np.int64))
        seen = self
        for token in output:
            seen = seen._then(token)
        return seen

    def _counted(self, output: Tokens) -> SeenTokens:
        tokens, places = np.unique(np.concatenate([self.tokens, output]), return_inverse=True)
        more = np.concatenate([self.counts, np.ones(len(output), np.float32)])
        return SeenTokens(tokens, np.bincount(places, weights=more).astype(np.float32))

    def _then(self, token: TokenId) -> SeenTokens:
        places = np.flatnonzero(self.tokens == token)
        if not places.size:
            tokens = np.append(self.tokens, np.int64(token))
            return SeenTokens(tokens, np.append(self.counts, np.float32(1.0)))
        counts = self.counts.copy()
        counts[places] += np.float32(1.0)
        return SeenTokens(self.tokens, counts)


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """A session's settings, as arrays."""

    repetition: np.float32
    frequency: np.float32
    presence: np.float32
    biased: Tokens  # int64[n], each once
    bias: Logits  # float32[n]
    min_tokens: int
    stop_tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Adjustment:
    """The changes that a session's settings make at one position. It is immutable."""

    rules: Rules
    position: int
    seen: SeenTokens | None  # None without penalties

    @staticmethod
    def first(
        settings: LogitSettings, prompt: Sequence[TokenId], stop_tokens: Sequence[TokenId]
    ) -> Adjustment | None:
        """Return the adjustment of position 0; None if the settings change nothing anywhere."""
        rules = Rules(
            np.float32(settings.repetition_penalty),
            np.float32(settings.frequency_penalty),
            np.float32(settings.presence_penalty),
            np.array(list(settings.logit_bias), np.int64),
            np.array(list(settings.logit_bias.values()), np.float32),
            settings.min_tokens if stop_tokens else 0,
            np.array(stop_tokens, np.int64),
        )
        repeats = rules.repetition != 1.0  # then the prompt's tokens count
        penalises = repeats or rules.frequency or rules.presence
        if not (penalises or rules.biased.size or rules.min_tokens):
            return None
        return Adjustment(
            rules, 0, SeenTokens.of(prompt if repeats else ()) if penalises else None
        )

    def after(self, output: Sequence[TokenId]) -> Adjustment:
        """Return the adjustment after these tokens, the first of which is at this position."""
        seen = self.seen and self.seen.after(output)
        return Adjustment(self.rules, self.position + len(output), seen)

    def apply(self, logits: Logits) -> Logits:
        """Return the adjusted logits (float32[V]); the same array if nothing changes."""
        rules, seen, is_barred = self.rules, self.seen, self.position < self.rules.min_tokens
        if not (rules.biased.size or (seen and seen.tokens.size) or is_barred):
            return logits
        changed = logits.copy()
        changed[rules.biased] += rules.bias
        if seen is not None:
            scaled = changed[seen.tokens]
            scaled *= np.where(scaled > 0, 1.0 / rules.repetition, rules.repetition)
            once = np.where(seen.counts > 0, rules.presence, np.float32(0.0))
            changed[seen.tokens] = scaled - (rules.frequency * seen.counts + once)
        if is_barred:
            kept = changed[rules.stop_tokens]
            changed[rules.stop_tokens] = -np.inf
            if changed.max() == -np.inf:
                changed[rules.stop_tokens] = kept
        return changed


class _Follower:
    """An Adjust that follows one session's text."""

    def __init__(self, first: Adjustment) -> None:
        self._first = self._here = first
        self._output: list[TokenId] = []

    def __call__(self, logits: Logits, output: Sequence[TokenId]) -> Logits:
        self._follow(list(output))
        return self._here.apply(logits)

    def _follow(self, output: list[TokenId]) -> None:
        """Move to the position after `output`, from the last one or from 0 after a break."""
        known = len(self._output)
        if output[:known] != self._output:
            self._here, known = self._first, 0
        self._here = self._here.after(output[known:])
        self._output = output
