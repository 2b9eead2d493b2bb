"""Prompt lookup: draft tokens from what followed when the same tokens were written before.

Answers repeat their prompt and themselves: code that is edited, names, quotations. The longest
n-gram that ends the text and stood earlier proposes what followed it there (Yang et al. 2023,
arXiv:2304.04487). Such a token is used in one of two ways:

    unread   It becomes a draft token at once. That saves a draft step, but the draft model has
             not checked it. So it is done only where drafting limits the speed and where
             matches of this length have been right so far.
    ahead    The draft model reads it in its next step, and it becomes a draft token only if the
             draft model agrees (staged speculation, Spector and Re 2023, arXiv:2308.04623).
             A step over four tokens takes two or three times as long as one over one token.

What a broken chain went on with is read ahead too: after the token that was wrong, the text
often continues in the same way.

All of this is for judges that take any draft token: it is exact there, whatever proposed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from picospec.speculation.proposing.ngrams import Index, Match, PromptGrams, resumption
from picospec.speculation.proposing.pool import Pool
from picospec.speculation.proposing.precision import Continuation, Precision, smoothed
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.draft_token import DraftToken

MIN_UNREAD_LENGTH: Final = 3
"""Tokens that must match before a token is proposed unread; shorter matches are only read."""

MATCH_PRIORS: Final = {16: (0.99, 16), 8: (0.88, 8), 3: (0.70, 8), 1: (0.25, 8)}
"""By the length of a match: how often it is right, and the number of matches that this counts
as. A prior, fitted to the Qwen pair at temperatures 0 and 1; each session corrects it by what
it sees."""

MAX_STEPS_A_PASS: Final = 6
"""No token is proposed unread where a pass lasts longer than so many draft steps: the draft
model then fills the pass by itself. Found with `python -m picospec.bench.predictions`."""

RISK_MARGIN: Final = 2.0
"""Factor by which the expected loss of a wrong unread token is raised: the draft tokens after
it are lost as well. Found with `python -m picospec.bench.simulator`: 2 loses at most 1 % in any
cell."""

READING_PRIOR: Final = 0.25
"""What reading one more token takes the draft model, in draft steps, until it is measured."""

AHEAD_SIZES: Final = (3, 7, 15)
"""Tokens that a step may read ahead. With the token before them they fill blocks of four rows,
which is what llama.cpp's kernels work in."""

RESUMPTION_PRIORS: Final = {1: 0.45, 2: 0.8, 3: 0.9}
"""How often the draft model agrees with what a broken chain went on with, by the number of
tokens before it that agree. A prior, fitted to the Qwen pair."""


def is_worth_unread(confidence: float, latencies: Latencies, *, read_s: float) -> bool:
    """Return whether a token is worth more unread than a step of the draft model.

    read_s: what the draft model takes to read a token later that it did not draft. An unread
    token saves a step less that; a wrong one loses a round trip and a pass. Without a draft
    model there is nothing to lose: the verifier judges no rows, and waits for none, that do
    not pay.
    """
    if latencies.draft_s == inf:
        return True
    if not 0.0 < latencies.pass_s < MAX_STEPS_A_PASS * latencies.draft_s:
        return False
    lost_s = (1.0 - confidence) * (latencies.rtt_s + latencies.pass_s)
    return RISK_MARGIN * lost_s <= latencies.draft_s - read_s


def ahead_size(right: float, latencies: Latencies, *, read_s: float) -> int:
    """Return how many tokens a step should read ahead, each of them right as often as `right`.
    read_s: what reading one takes. Each token that the draft model agrees with saves a step
    if all before it do."""

    def gain_s(count: int) -> float:
        saved = sum(right**n for n in range(1, count + 1))
        return saved * latencies.draft_s - count * read_s

    return max((0, *AHEAD_SIZES), key=gain_s) if 0.0 < latencies.draft_s < inf else 0


class PromptLookup:
    """A Proposer: one session's index, and how often its matches are right. grams: those of the
    prompt, where they have been made already. pool: where else unread tokens may be found. The
    draft model has not read them there, and would not agree: they are not read ahead."""

    def __init__(
        self,
        prompt: Sequence[TokenId],
        grams: PromptGrams | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._pool = pool
        self._index = Index(prompt=grams or PromptGrams(prompt))
        self._prompt_tokens = len(prompt)
        self._matches = [self._index.match()]  # for each position, up to the next one
        self._pooled = [self._in_pool()]  # the same in the pool
        self._precision, self._pool_precision = (
            {length: Precision(*prior) for length, prior in MATCH_PRIORS.items()}
            for _ in range(2)
        )
        self._committed = 0
        self._read_s: float | None = None
        """What the draft model takes to read one more token in a step; None: unknown."""

        self._dropped: list[TokenId] = []  # the last broken chain, from its wrong token on
        self._dropped_at = 0

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        """Bring the index to the prompt, the committed tokens and the chain."""
        for position in range(self._committed, len(committed)):
            self._commit(position, committed[position])
        self._committed = len(committed)
        followed = len(self._index.tokens) - self._prompt_tokens - self._committed
        for drafted in chain[followed:]:
            self._append(drafted.token)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        """Return the token to put behind the chain unread, if there is one worth it."""
        found = [
            (match.length, precision[match.length].right, match.token)
            for matches, precision in self._sources
            if (match := matches[-1]) and match.length >= MIN_UNREAD_LENGTH
        ]
        if not found:
            return None
        _, confidence, token = max(found)
        worth = is_worth_unread(confidence, latencies, read_s=self._reading_s(latencies))
        return DraftToken(token, confidence, origin="lookup") if worth else None

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        """Return what the draft model should read behind the chain in its next step."""
        text = self._index.tokens
        options: list[tuple[float, Sequence[TokenId]]] = []
        if found := self.match(max(AHEAD_SIZES)):
            options.append((found.precision.right, found.tokens))
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
        return Continuation(followed, self._precision[match.length])

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        if more > 0 and draft_s > 0.0:
            self._read_s = smoothed(self._read_s, max(0.0, took_s - draft_s) / more)

    def _reading_s(self, latencies: Latencies) -> float:
        return READING_PRIOR * latencies.draft_s if self._read_s is None else self._read_s

    def _commit(self, position: int, token: TokenId) -> None:
        for matches, precision in self._sources:
            if match := matches[position]:
                precision[match.length].observe(match.token == token)
        at = self._prompt_tokens + position
        if (rest := self._index.tokens[at:])[:1] == [token]:
            return
        if len(rest) > 1:
            self._dropped, self._dropped_at = rest, at
        self._index.truncate(at)
        del self._matches[position + 1 :], self._pooled[position + 1 :]
        self._append(token)

    def _append(self, token: TokenId) -> None:
        self._index.append(token)
        self._matches.append(self._index.match())
        self._pooled.append(self._in_pool())

    def _in_pool(self) -> Match | None:
        return self._pool.match(self._index.tokens) if self._pool else None

    @property
    def _sources(self) -> tuple[tuple[list[Match | None], dict[int, Precision]], ...]:
        return (self._matches, self._precision), (self._pooled, self._pool_precision)
