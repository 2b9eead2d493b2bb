"""Prompt lookup: draft tokens that followed when the same tokens were in the text before.

Answers repeat their prompt and themselves: code that is edited, names, quotations. The longest
n-gram that ends the text and occurred earlier proposes what followed it there (Yang et al.
2023, arXiv:2304.04487). Such a token is used in one of two ways:

    unread   It becomes a draft token at once. That saves a draft step, but the draft model has
             not checked it. So this is done only where drafting limits the speed and matches
             of this length have been right so far.
    ahead    The draft model reads it in its next step, and it becomes a draft token only if the
             draft model agrees (staged speculation, Spector and Re 2023, arXiv:2308.04623).
             A step over four tokens takes two or three times as long as one over one token.

The rest of a broken chain is read ahead too: after the wrong token, the text often continues in
the same way.

This is only for judges that take any draft token: with them it is exact, whatever proposed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from speculation.answer_cache import AnswerCache
from speculation.draft_token import DraftToken
from speculation.learning import Continuation, Precision, running_mean
from speculation.model_facts import TokenId
from speculation.ngrams import Index, Match, PromptGrams, resumption
from speculation.proposer import Latencies

MIN_UNREAD_LENGTH: Final = 3
"""This many tokens must match before a token is proposed unread; shorter matches are read."""

MATCH_PRIORS: Final = {
    16: (0.99, 16), 8: (0.88, 8), 3: (0.65, 8), 2: (0.40, 8), 1: (0.20, 8),
}  # fmt: skip
"""Maps the length of a match to how often it is right, and to the number of matches that this
counts as. The prior is fitted to answers that copy and to answers that do not; each session
corrects it by its observations."""

MAX_STEPS_PER_PASS: Final = 6
"""No token is proposed unread if a pass lasts longer than this many draft steps: the draft
model then fills the pass by itself. Found with `python -m bench.predictions`."""

RISK_MARGIN: Final = 2.0
"""The expected loss of a wrong unread token is raised by this factor, because the draft tokens
after it are lost as well. Found with `python -m bench.simulator`: 2 loses at most 1 %
in any cell."""

READING_PRIOR: Final = 0.25
"""The draft model needs this many draft steps to read one more token, until measured."""

AHEAD_SIZES: Final = (3, 7, 15)
"""A step may read this many tokens ahead. With the token before them they fill blocks of four
rows, in which llama.cpp's kernels work."""

RESUMPTION_PRIORS: Final = {1: 0.45, 2: 0.8, 3: 0.9}
"""Maps the number of agreeing tokens before it to how often the draft model agrees with the
rest of a broken chain. The prior is fitted to the Qwen pair."""


def pays_unread(confidence: float, latencies: Latencies, *, read_s: float) -> bool:
    """Return True if an unread token is expected to gain more time than a step of the draft
    model.

    read_s: seconds that the draft model takes to read a token later that it did not draft. An
    unread token saves a step minus read_s; a wrong one loses a round trip and a pass. Without a
    draft model there is nothing to lose: the verifier judges, and waits for, only rows that
    pay.
    """
    if latencies.draft_s == inf:
        return True
    if not 0.0 < latencies.pass_s < MAX_STEPS_PER_PASS * latencies.draft_s:
        return False
    lost_s = (1.0 - confidence) * (latencies.rtt_s + latencies.pass_s)
    return RISK_MARGIN * lost_s <= latencies.draft_s - read_s


def ahead_size(right: float, latencies: Latencies, *, read_s: float) -> int:
    """Return how many tokens a step should read ahead, each of which is right with probability
    `right`. read_s: seconds to read one. Each token that the draft model agrees with saves a
    step if all before it do."""

    def gain_s(count: int) -> float:
        saved = sum(right**n for n in range(1, count + 1))
        return saved * latencies.draft_s - count * read_s

    return max((0, *AHEAD_SIZES), key=gain_s) if 0.0 < latencies.draft_s < inf else 0


class PromptLookup:
    """A Proposer with one session's index and the precision of its matches. grams: the prompt's
    n-grams, if they exist already. cache: another source of unread tokens; they are not read
    ahead, because the draft model, which has not read the cache, would not agree."""

    def __init__(
        self,
        prompt: Sequence[TokenId],
        grams: PromptGrams | None = None,
        answer_cache: AnswerCache | None = None,
    ) -> None:
        self._answer_cache = answer_cache
        self._index = Index(prompt=grams or PromptGrams(prompt))
        self._prompt_tokens = len(prompt)
        self._matches = [self._index.match()]  # for each position, up to the next one
        self._cache_matches = [self._in_cache()]  # the same matches in the cache
        self._precision, self._cache_precision = (
            {length: Precision(*prior) for length, prior in MATCH_PRIORS.items()}
            for _ in range(2)
        )
        self._committed = 0
        self._read_s: float | None = None
        """The draft model reads one more token in this many seconds; None if unknown."""

        self._dropped: list[TokenId] = []  # the last broken chain, from its wrong token on
        self._dropped_at = 0

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        """Extend or truncate the index to the prompt, the committed tokens and the chain."""
        for position in range(self._committed, len(committed)):
            self._commit(position, committed[position])
        self._committed = len(committed)
        followed = len(self._index.tokens) - self._prompt_tokens - self._committed
        for drafted in chain[followed:]:
            self._append(drafted.token)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        """Return the token to append to the chain unread, None if no token is worth it."""
        sources = (self._matches, self._precision), (self._cache_matches, self._cache_precision)
        candidates = [
            (match.length, precision[match.length].right, match.token)
            for matches, precision in sources
            if (match := matches[-1]) and match.length >= MIN_UNREAD_LENGTH
        ]
        if not candidates:
            return None
        _, confidence, token = max(candidates)
        worth = pays_unread(confidence, latencies, read_s=self._reading_s(latencies))
        return DraftToken(token, confidence, origin="lookup") if worth else None

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        """Return the tokens for the draft model to read after the chain in its next step."""
        text = self._index.tokens
        options: list[tuple[float, Sequence[TokenId]]] = []
        if continuation := self.match(max(AHEAD_SIZES)):
            options.append((continuation.precision.right, continuation.tokens))
        longest = max(RESUMPTION_PRIORS)
        if match := resumption(self._dropped, text, self._dropped_at, most=longest):
            options.append((RESUMPTION_PRIORS[match.length], self._dropped[match.at :]))
        right, tokens = max(options, default=(0.0, ()))
        return list(tokens[: ahead_size(right, latencies, read_s=self._reading_s(latencies))])

    def match(self, most: int) -> Continuation | None:
        """Return at most `most` tokens that followed the longest match, if there is one."""
        if (match := self._matches[-1]) is None:
            return None
        followed = self._index.tokens[match.at : match.at + most]
        return Continuation(followed, match.length, self._precision)

    def cached_answer(self, most: int) -> Continuation | None:
        """Return at most `most` tokens that followed the longest match in the cache, if any."""
        if self._answer_cache is None or (match := self._cache_matches[-1]) is None:
            return None
        followed = self._answer_cache.following(match.at, most)
        return Continuation(followed, match.length, self._cache_precision)

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        if more > 0 and draft_s > 0.0:
            self._read_s = running_mean(self._read_s, max(0.0, took_s - draft_s) / more)

    def _reading_s(self, latencies: Latencies) -> float:
        return READING_PRIOR * latencies.draft_s if self._read_s is None else self._read_s

    def _commit(self, position: int, token: TokenId) -> None:
        if match := self._matches[position]:
            self._precision[match.length].observe(match.token == token)
        if match := self._cache_matches[position]:
            self._cache_precision[match.length].observe(match.token == token)
        at, tokens = self._prompt_tokens + position, self._index.tokens
        if at < len(tokens) and tokens[at] == token:
            return
        if len(tokens) > at + 1:
            self._dropped, self._dropped_at = tokens[at:], at
        self._index.truncate(at)
        del self._matches[position + 1 :], self._cache_matches[position + 1 :]
        self._append(token)

    def _append(self, token: TokenId) -> None:
        self._index.append(token)
        self._matches.append(self._index.match())
        self._cache_matches.append(self._in_cache())

    def _in_cache(self) -> Match | None:
        index = self._index
        return (
            self._answer_cache.match(index.tokens, index.keys) if self._answer_cache else None
        )
