"""A session's draft tokens at the verifier: the chain of the edge's, and the verifier's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from speculation.distributions import DraftToken
from speculation.learning import Continuation, Precision, running_mean
from speculation.lookup import PromptLookup
from speculation.messages import Draft, Limits, Open, RemoteProtocolError, TokenId
from speculation.ngrams import LENGTHS, SHARED, AnswerCache, Owner, resumption
from speculation.prediction import Prediction

# The draft tokens that the verifier keeps of a session's newest epoch.
#
# They are compared with the committed text as far as both reach. At the first difference the
# chain and its epoch end; the edge's next Draft begins another one.

ACCEPTANCE_PRIOR: Final = 0.9
"""The estimated acceptance before any draft token was compared; it counts as one observation.
It is on the high side, because at first a row too many costs less than one too few. Found with
`python -m bench.simulator`: 0.8 slows code by 2 %."""

ACCEPTANCE_WEIGHT: Final = 1 / 16
"""The latest comparison has this weight in the running mean; the first few weigh more."""


class Chain:
    """start: the first position that can be drafted; the edge knows the text before it."""

    def __init__(self, start: int = 0) -> None:
        self.epoch = 0
        self.newest = (0, 0)
        """Epoch and end of the newest draft tokens to arrive, without void ones."""

        self.broken = False  # the chain was found wrong, and no pass has begun since
        self.wrong_at = 0  # the position of the latest difference
        self.dropped: tuple[TokenId, ...] = ()
        """The tokens of the last broken chain, from the wrong token on."""

        self.acceptance = ACCEPTANCE_PRIOR
        """The estimated probability that a draft token equals the text if those before it do.
        It is learned from every draft token that arrives, judged or overtaken."""

        self._compared = 0
        self._void = -1  # epochs up to this one are known to be wrong
        self._agreed = start  # positions before this one are known to equal the text
        self._drafts: dict[int, tuple[TokenId, int]] = {}  # from _agreed on: token and weight
        self.reach = start
        """The position after the last draft token that follows without a gap; the text may have
        gone further."""

    def is_void(self, epoch: int) -> bool:
        return epoch <= self._void

    def drafts(self, start: int, count: int) -> list[tuple[TokenId, int]]:
        """Return `count` draft tokens from a position on, with their weights in 1/Q_SCALE."""
        return [self._drafts[position] for position in range(start, start + count)]

    def begin(self, draft: Draft) -> None:
        """Note the arrival of a Draft that is not void. `extend` must follow. Raise
        RemoteProtocolError if an epoch has two tokens at one position."""
        if draft.epoch == self.epoch:
            for position, token in enumerate(draft.tokens, draft.start):
                if self._drafts.get(position, (token,))[0] != token:
                    raise RemoteProtocolError(f"Draft.tokens: position {position} has changed")
        self.newest = max(self.newest, (draft.epoch, draft.start + len(draft.tokens)))
        if draft.epoch > self.epoch:
            self.epoch = draft.epoch
            self._agreed = self.reach = draft.start - draft.offset
            self._drafts.clear()

    def extend(self, draft: Draft, text: Sequence[TokenId]) -> None:
        """Add a Draft's tokens and compare them with the text."""
        weights = draft.q or (0,) * len(draft.tokens)
        placed = enumerate(zip(draft.tokens, weights, strict=True), draft.start)
        self._drafts.update((at, item) for at, item in placed if at >= self._agreed)
        self._extend_reach()
        self.follow(text, draft.start - draft.offset)

    def _extend_reach(self) -> None:
        self.reach = max(self.reach, self._agreed)
        while self.reach in self._drafts:
            self.reach += 1

    def rejected(self, text: Sequence[TokenId]) -> None:
        """End the chain at a draft token that was rejected after this text; the token in its
        place is not known yet."""
        self.follow(text)
        self._learn(False)
        self._end(len(text))

    def _end(self, position: int) -> None:
        """End the chain at a position; its epoch is void from now on."""
        self.wrong_at = position
        self._void = self.epoch
        self._drafts.clear()
        self.reach = self._agreed
        self.broken = True

    def follow(self, text: Sequence[TokenId], known: int = 0) -> None:
        """Compare the chain with the text, from the first position that is not known to agree.
        known: the edge had the text before this position when it made the chain, so a missing
        draft token there is no gap."""
        while self._agreed < len(text):
            if draft := self._drafts.pop(self._agreed, None):
                right = draft[0] == text[self._agreed]
                self._learn(right)
                if not right:
                    self.dropped = (draft[0], *self._after(self._agreed))
                    self._end(self._agreed)
                    return
            elif self._agreed >= known:
                return
            self._agreed += 1
            if self._agreed > self.reach:  # past a token that the edge knew
                self._extend_reach()

    def _after(self, position: int) -> Iterator[TokenId]:
        """Yield the draft tokens after a position, up to the first gap."""
        while draft := self._drafts.get(position := position + 1):
            yield draft[0]

    def _learn(self, right: bool) -> None:
        self._compared += 1
        weight = max(ACCEPTANCE_WEIGHT, 1 / (1 + self._compared))
        self.acceptance = running_mean(self.acceptance, right, weight)


def check(draft: Draft, text_end: int, *, vocabulary_size: int, max_ahead: int) -> None:
    """Raise RemoteProtocolError, naming the field, for a Draft that no correct edge sends.

    text_end: the length of the text that the edge may know. That is never more than the
    verifier knows, except for a recovered token that the edge draws. So a late, early or
    repeated Draft raises none of these errors.
    """
    if not draft.tokens:
        raise RemoteProtocolError("Draft.tokens: empty")
    if (highest := max(draft.tokens)) >= vocabulary_size:
        raise RemoteProtocolError(f"Draft.tokens: {highest} is not a token")
    if draft.offset > draft.start:
        raise RemoteProtocolError(f"Draft.offset: {draft.offset} are not before {draft.start}")
    ahead = draft.start + len(draft.tokens) - text_end
    if ahead > max_ahead:
        raise RemoteProtocolError(f"Draft.start: {ahead} ahead, over {max_ahead}")
    if draft.start - draft.offset > text_end:
        raise RemoteProtocolError(f"Draft.offset: {draft.offset} leave a gap to the text")


# Draft tokens that the verifier proposes itself where the edge's have not arrived.
#
# When a chain breaks, nothing can be judged until new draft tokens have crossed the link. But
# the verifier often knows what comes next, and some judges let any token be tried:
#
#     prediction   the text that the client expects in the answer
#     match        what followed when the same tokens were in prompt or answer before, or in an
#                  earlier answer to the same owner
#     resumption   the rest of a broken chain: the text often continues in the same way
#
# The precision of each is learned in every session, so that rows are spent where they earn
# most.

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
        if self._dropped and (resumed := self._resume([*committed, *pending], wrong_at, most)):
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

    def _resume(self, text: Sequence[TokenId], wrong_at: int, most: int) -> Continuation | None:
        longest = max(RESUMPTION_PRIORS)
        match = resumption(self._dropped, text, wrong_at, most=longest)
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
