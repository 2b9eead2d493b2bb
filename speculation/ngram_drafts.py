"""Draft tokens that the verifier proposes itself where the edge's have not arrived.

When a chain breaks, nothing can be judged until new draft tokens have crossed the link. But
the verifier often knows what comes next, and some judges let any token be tried:

    prediction   the text that the client expects in the answer
    match        what followed when the same tokens were in prompt or answer before, or in an
                 earlier answer to the same owner
    resumption   the rest of a broken chain: the text often continues in the same way

The precision of each is learned in every session, so that rows are spent where they earn
most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from speculation.answer_cache import SHARED, AnswerCache, Owner
from speculation.chain import Chain
from speculation.draft_token import DraftToken
from speculation.learning import Continuation, Precision
from speculation.lookup import PromptLookup
from speculation.messages import Draft, Open
from speculation.model_facts import Limits, TokenId
from speculation.ngrams import LENGTHS, resumption
from speculation.prediction import Prediction

MAX_TEXT_TOKENS: Final = 8192
"""This many of the last tokens that a session begins with are searched for matches; the file
that an agent edits is among them. Their index takes 0.3 MB, and half a millisecond in which no
pass can start (on a core of an EPYC)."""

MAX_DROPPED: Final = 64
"""This many tokens are kept of a broken chain; later ones are hardly ever right."""

MAX_ANSWER_CACHES: Final = 32
"""So many owners have a cache; the one that was used longest ago is dropped."""

ANSWER_CACHE_TOKENS: Final = 32_768
"""A cache holds this many tokens of an owner's latest answers, and takes 1.5 MB."""

RESUMPTION_PRIORS: Final = {1: (0.4, 4), 2: (0.6, 4), 3: (0.7, 4)}
"""Maps the number of tokens before a place that the broken chain and the text share to how
often the chain's next token is right, and to the observations that this prior counts as. It is
fitted to the Qwen pair; each session corrects it by what it sees."""


class AnswerCaches:
    """Has a cache of answers for each owner: nobody drafts from another owner's answers."""

    def __init__(self) -> None:
        self._answer_caches: dict[
            Owner, AnswerCache
        ] = {}  # the one that was used last is at the end

    def of(self, owner: Owner) -> AnswerCache:
        """Return an owner's cache, an empty one at first."""
        answer_cache = self._answer_caches.pop(owner, None) or AnswerCache(
            ANSWER_CACHE_TOKENS, LENGTHS
        )
        self._answer_caches[owner] = answer_cache
        if len(self._answer_caches) > MAX_ANSWER_CACHES:
            del self._answer_caches[next(iter(self._answer_caches))]
        return answer_cache

    def forget(self, owner: Owner) -> None:
        """Drop an owner's cache, and the one that all tenants share; all caches of a tenant if
        the owner is no user. Answers that have begun still draft from them."""
        for each in list(self._answer_caches):
            is_own = each.tenant == owner.tenant and owner.user in ("", each.user)
            if is_own or each == SHARED:
                del self._answer_caches[each]


class NgramDrafts:
    """Proposes draft tokens for one session, from its request's prompt and prediction, and from
    a cache of earlier answers."""

    def __init__(
        self, request: Open, limits: Limits, answer_cache: AnswerCache | None = None
    ) -> None:
        self._most = limits.max_verify
        self._stop_tokens = frozenset(request.stop_tokens)
        self._initial_tokens = len(request.committed)
        text = (*request.prompt[-MAX_TEXT_TOKENS:], *request.committed)
        self._lookup = PromptLookup(text[-MAX_TEXT_TOKENS:], answer_cache=answer_cache)
        self._prediction = Prediction(request.predicted) if request.predicted else None
        self._resumption_precision = {
            agreed: Precision(*prior) for agreed, prior in RESUMPTION_PRIORS.items()
        }
        self._broken: tuple[TokenId, ...] = ()  # Chain.dropped
        self._dropped: list[TokenId] = []  # the same, with later tokens of that chain
        self._state: tuple[int, ...] = ()  # the state of text and chain at `propose`
        self._proposed: Continuation | None = None

    def observe_late(self, draft: Draft, chain: Chain) -> None:
        """Note more draft tokens of the chain that broke last."""
        self._note_break(chain)
        known = chain.wrong_at + len(self._dropped) - draft.start
        if known >= 0:
            room = MAX_DROPPED - len(self._dropped)
            self._dropped.extend(draft.tokens[known : known + room])
            self._state = ()

    def _note_break(self, chain: Chain) -> None:
        if self._broken is not chain.dropped:
            self._broken, self._state = chain.dropped, ()
            self._dropped = list(chain.dropped[:MAX_DROPPED])

    def propose(
        self, committed: Sequence[TokenId], chain: Chain, pending: int
    ) -> Continuation | None:
        """Return the likeliest tokens to judge after the edge's pending draft tokens, at most
        as many as a pass can take."""
        self._note_break(chain)
        state = (len(committed), chain.epoch, pending)
        if state != self._state:
            drafts = [token for token, _ in chain.drafts(len(committed), pending)]
            self._proposed = self._likeliest(committed, drafts, chain.wrong_at)
            self._state = state
        return self._proposed

    def _likeliest(
        self, committed: Sequence[TokenId], pending: Sequence[TokenId], wrong_at: int
    ) -> Continuation | None:
        options: list[Continuation] = []
        most = self._most - len(pending)
        if most <= 0 or self._stop_tokens.intersection(pending):
            return None
        start = self._initial_tokens
        generated = committed[start:] if start else committed  # no copy
        self._lookup.follow(generated, [DraftToken(token, 1.0) for token in pending])
        if match := self._lookup.match(most):
            options.append(match)
        if cached_answer := self._lookup.cached_answer(most):
            options.append(cached_answer)
        if self._prediction is not None:
            self._prediction.follow(committed, pending)
            options.append(self._prediction.continuation(most))
        if self._dropped and (resumed := self._resume(committed, pending, wrong_at, most)):
            options.append(resumed)
        continuations = [each for each in options if each.tokens]
        best = max(continuations, key=lambda each: each.precision.right, default=None)
        if best is None or self._stop_tokens.isdisjoint(best.tokens):
            return best
        return replace(best, tokens=self._up_to_stop(best.tokens))

    def _up_to_stop(self, tokens: Sequence[TokenId]) -> Sequence[TokenId]:
        """Return the tokens up to the first one that ends the answer."""
        ends = (at for at, token in enumerate(tokens, 1) if token in self._stop_tokens)
        return tokens[: next(ends, len(tokens))]

    def _resume(
        self,
        committed: Sequence[TokenId],
        pending: Sequence[TokenId],
        wrong_at: int,
        most: int,
    ) -> Continuation | None:
        longest = max(RESUMPTION_PRIORS)
        end = [*committed[-longest:], *pending]  # the whole text may be long
        left_out = len(committed) + len(pending) - len(end)
        match = resumption(self._dropped, end, wrong_at - left_out, most=longest)
        if match is None:
            return None
        return Continuation(
            self._dropped[match.at : match.at + most], match.length, self._resumption_precision
        )

    def judged(self, tried: Continuation, count: int, accepted: int) -> None:
        """Learn from a pass that judged the first `count` tokens of a continuation. Matches and
        predictions learn from every token of the text instead."""
        if tried.by_agreed is self._resumption_precision:
            for index in range(min(accepted + 1, count)):
                tried.precision.observe(index < accepted)
