"""Draft tokens that the verifier proposes itself, where the edge's have not arrived.

When a chain breaks, nothing can be judged until new draft tokens have crossed the link. But the
verifier knows what often comes next all the same, and some judges let any token be tried:

    prediction   what the client expects of the answer
    match        what followed when the same tokens were in prompt or answer before
    resumption   what a broken chain went on with: the text often continues in the same way

How often each is right is learned in every session, so that rows are spent on what earns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from picospec.speculation.proposing.ngrams import resumption
from picospec.speculation.proposing.precision import Continuation, Precision
from picospec.speculation.proposing.prediction import Prediction
from picospec.speculation.proposing.prompt_lookup import PromptLookup
from picospec.speculation.protocol.messages import Draft, Limits, Open, TokenId
from picospec.speculation.sampling.draft_token import DraftToken
from picospec.speculation.verifying.chain import Chain

MAX_TEXT_TOKENS: Final = 8192
"""Tokens of the text that a session begins with, its last ones, in which matches are looked
for: the file that an agent edits is among them. An index of all takes .5 MB, and 8 ms, in
which no pass can start."""

MAX_DROPPED: Final = 64
"""Tokens kept of a broken chain: what lies further on is hardly ever right."""

RESUMPTION_PRIORS: Final = {1: (0.4, 4), 2: (0.6, 4), 3: (0.7, 4)}
"""From the number of tokens before a place that the broken chain and the text share: how often
the chain's next token is the text's, too, and as how many observations this counts. A prior,
fitted to the Qwen pair (docs/decisions.md); each session corrects it by what it sees."""


class OwnDrafts:
    """It proposes for one session. The request has its prompt and its prediction."""

    def __init__(self, request: Open, limits: Limits) -> None:
        self._most = limits.max_verify
        self._stop_tokens = frozenset(request.stop_tokens)
        self._begun_with = len(request.committed)
        text = (*request.prompt[-MAX_TEXT_TOKENS:], *request.committed)
        self._lookup = PromptLookup(text[-MAX_TEXT_TOKENS:])
        self._prediction = Prediction(request.predicted) if request.predicted else None
        self._resumed = {
            agreed: Precision(*prior) for agreed, prior in RESUMPTION_PRIORS.items()
        }
        self._broken: tuple[TokenId, ...] = ()  # Chain.dropped
        self._dropped: list[TokenId] = []  # the same, and what came of it later
        self._at: tuple[int, ...] = ()  # where the text and the chain were at `propose`
        self._proposed: Continuation | None = None

    def came_late(self, draft: Draft, chain: Chain) -> None:
        """Note more draft tokens of the chain that broke last."""
        self._note_break(chain)
        known = chain.wrong_at + len(self._dropped) - draft.start
        if known >= 0:
            room = MAX_DROPPED - len(self._dropped)
            self._dropped.extend(draft.tokens[known : known + room])
            self._at = ()

    def _note_break(self, chain: Chain) -> None:
        if self._broken is not chain.dropped:
            self._broken, self._at = chain.dropped, ()
            self._dropped = list(chain.dropped[:MAX_DROPPED])

    def propose(
        self, committed: Sequence[TokenId], chain: Chain, pending: int
    ) -> Continuation | None:
        """Return the tokens to judge after so many pending draft tokens of the edge, the
        likeliest that there are, and no more than a pass can take."""
        self._note_break(chain)
        at = (len(committed), chain.epoch, pending)
        if at != self._at:
            drafts = [token for token, _ in chain.drafts(at[0], pending)]
            self._at, self._proposed = at, self._likeliest(committed, drafts, chain.wrong_at)
        return self._proposed

    def _likeliest(
        self, committed: Sequence[TokenId], pending: Sequence[TokenId], wrong_at: int
    ) -> Continuation | None:
        options: list[Continuation] = []
        most = self._most - len(pending)
        if most <= 0 or self._stop_tokens.intersection(pending):
            return None
        generated = committed[self._begun_with :] if self._begun_with else committed  # no copy
        self._lookup.follow(generated, [DraftToken(token, 1.0) for token in pending])
        if match := self._lookup.match(most):
            options.append(match)
        if self._prediction is not None:
            self._prediction.follow(committed, pending)
            options.append(self._prediction.continuation(most))
        if resumed := self._resume([*committed, *pending], wrong_at, most):
            options.append(resumed)
        found = [each for each in options if each.tokens]
        best = max(found, key=lambda each: each.precision.right, default=None)
        return best and replace(best, tokens=self._up_to_stop(best.tokens))

    def _up_to_stop(self, tokens: Sequence[TokenId]) -> Sequence[TokenId]:
        """Return the tokens up to the first that would end the answer."""
        ends = (at for at, token in enumerate(tokens, 1) if token in self._stop_tokens)
        return tokens[: next(ends, len(tokens))]

    def _resume(self, text: Sequence[TokenId], wrong_at: int, most: int) -> Continuation | None:
        longest = max(RESUMPTION_PRIORS)
        match = resumption(self._dropped, text, wrong_at, most=longest)
        if match is None:
            return None
        return Continuation(
            self._dropped[match.at : match.at + most], self._resumed[match.length]
        )

    def judged(self, tried: Continuation, count: int, accepted: int) -> None:
        """Learn from a pass that judged the first `count` tokens of a continuation. Matches and
        predictions learn from every token of the text instead."""
        if any(tried.precision is each for each in self._resumed.values()):
            for index in range(min(accepted + 1, count)):
                tried.precision.observe(index < accepted)
