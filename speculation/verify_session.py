"""The verifier's record of one answer: what is committed, and the passes that commit more.

    receive(Draft)  ->  begin() -> Pass  ->  (the target runs)  ->  resolve(Judgement)

Drafts arrive late, twice or out of order; each has its epoch and position. A pass takes the
draft tokens that follow the committed text without a gap, once all of the chain before them is
known to equal that text. Correctness never depends on an epoch's claims, because every draft
token is judged. No state changes when a method raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from speculation.answer_cache import AnswerCache
from speculation.chain import Chain, check
from speculation.errors import LocalProtocolError
from speculation.judge import Judgement, Rule
from speculation.judges import JUDGES
from speculation.learning import Continuation
from speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    FinishReason,
    Open,
    Pushed,
    TokenLogprob,
    Totals,
)
from speculation.model_facts import Limits, TokenId
from speculation.ngram_drafts import NgramDrafts

Tokens = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """One target pass judges K draft tokens from `start` on. K = 0 is a fill-in pass."""

    start: int
    draft: Tokens
    rule: Rule
    ngrams: int = 0  # this many of the last draft tokens are the verifier's own
    head: int = 0  # tokens of the target's head instead of a draft; unknown here
    proposed: Continuation | None = None  # what the verifier's own would be the first of


class VerifyingSession:
    """u: uniforms in [0, 1) that no edge can predict."""

    def __init__(
        self,
        request: Open,
        limits: Limits,
        *,
        vocabulary_size: int,
        u: Iterator[float],
        answer_cache: AnswerCache | None = None,
    ) -> None:
        self.request = request
        self.limits = limits
        self.chain = Chain(len(request.committed))
        self.committed: list[TokenId] = list(request.committed)
        self.totals = Totals()
        self.finished: FinishReason | None = None
        self._judge = JUDGES[request.judge].verifier(request, u)
        self._vocabulary_size = vocabulary_size
        self._running: Pass | None = None
        self._ngrams = (
            NgramDrafts(request, limits, answer_cache) if request.ngram_drafts else None
        )

    @property
    def is_running(self) -> bool:
        """True if a pass has begun, and its outcome is not known."""
        return self._running is not None

    @property
    def judging(self) -> int:
        """The number of draft tokens that are being judged."""
        return len(self._running.draft) if self._running else 0

    @property
    def may_begin(self) -> bool:
        """True if a pass may run: the answer goes on, and nothing is awaited from the edge."""
        needs_token = self._judge.awaited_position is not None
        needs_draft = self.needs_draft and not self.pending
        return not (self.finished or needs_token or needs_draft)

    @property
    def may_take_part(self) -> bool:
        """True if the session need not wait for a message before its next pass. With fill
        `never` it has a draft token of the edge in each."""
        return self.may_begin and (self.request.fill != "never" or self.pending > 0)

    @property
    def needs_draft(self) -> bool:
        """True if the next pass must have a draft token."""
        return self._judge.needs_draft

    @property
    def pending(self) -> int:
        """The number of draft tokens that the next pass could judge."""
        return max(0, self.chain.reach - len(self.committed))

    @property
    def head_room(self) -> int:
        """The most tokens of the target's head that a pass may judge. With fill `never` the
        target generates nothing without a draft of the edge."""
        if self.request.fill == "never" or not JUDGES[self.request.judge].takes_any_draft:
            return 0
        return max(0, self.request.max_tokens - len(self.committed) - 1)

    @property
    def gains(self) -> list[float]:
        """The probability that each draft token that a pass may judge is accepted, with all
        those before it."""
        acceptance = self.chain.acceptance
        judgeable = self._judge.judgeable(self.pending, self.limits.max_verify)
        gains = [acceptance**k for k in range(1, judgeable + 1)]
        if proposed := self._propose():
            reached = gains[-1] if gains else 1.0
            gains += [reached * chance for chance in proposed.chances()]
        return gains

    def _propose(self) -> Continuation | None:
        """Return the verifier's n-gram drafts after the pending ones, if there are any. They
        are looked up once for each state of text and chain: a driver asks for `gains` more
        often than passes begin, and an engine trims a plan, or begins a pass of no plan."""
        if self._ngrams is None:
            return None
        return self._ngrams.propose(self.committed, self.chain, self.pending)

    def receive(self, message: Pushed) -> list[Down]:
        """Take in a message; return the messages to send at once.

        Raise RemoteProtocolError, naming the field, for a message that no correct edge sends.
        Void and repeated messages are dropped silently.
        """
        if isinstance(message, Draft):
            self._drafted(message)
            return []
        down = self._judge.received(message, self.committed)
        if isinstance(down, Commit):
            return self._commit(down)
        return [down] if down else []

    def _drafted(self, draft: Draft) -> None:
        awaited, size = self._judge.awaited_position, self._vocabulary_size
        text_end = len(self.committed) if awaited is None else awaited + 1
        check(draft, text_end, vocabulary_size=size, max_ahead=self.limits.max_ahead)
        self._judge.check(draft)
        chain = self.chain
        if self.finished or draft.epoch < chain.epoch or chain.is_void(draft.epoch):
            if self._ngrams and draft.epoch == chain.epoch:
                self._ngrams.observe_late(draft, chain)
            return
        chain.begin(draft)
        chain.extend(draft, self.committed)

    def plan(self, most: int) -> Tokens:
        """Return the draft tokens of a pass that would judge at most `most` pending ones.

        With fill `never` there is at least one: the target generates nothing without a draft.
        """
        start = len(self.committed)
        room = self.request.max_tokens - start - 1  # the target's own token needs a position
        least = int(self.needs_draft or self.request.fill == "never")
        count = min(max(most, least), self.limits.max_verify, room)
        return tuple([token for token, _ in self._items(count, self._propose())])

    def begin(self, drafts: int, *, head: int = 0) -> Pass:
        """Begin a pass over the first `drafts` draft tokens (the pending ones, then the
        verifier's own), or over `head` tokens of the target's head; `resolve` must follow."""
        if self._running or not self.may_begin:
            raise LocalProtocolError("no pass may begin now")
        start, proposed = len(self.committed), self._propose()
        items = self._items(drafts, proposed)
        if not int(self.needs_draft) <= drafts == len(items):
            raise LocalProtocolError(f"no pass can have {drafts} draft tokens")
        self.chain.broken = False
        tokens = tuple([token for token, _ in items])
        rule = self._judge.rule(start, [weight for _, weight in items])
        ngrams = max(0, drafts - self.pending)
        proposed = None if head else proposed
        self._running = Pass(start, tokens, rule, ngrams, head, proposed)
        return self._running

    def fill_in_rule(self, start: int) -> Rule:
        """Return the rule of a pass from a position on that has no draft token."""
        return self._judge.rule(start, ())

    def _items(self, most: int, proposed: Continuation | None) -> list[tuple[TokenId, int]]:
        """Return at most this many draft tokens with their weights, the edge's first."""
        items = self.chain.drafts(len(self.committed), min(most, self.pending))
        if (ngrams := most - len(items)) > 0 and proposed:
            items += [(token, 0) for token in proposed.tokens[:ngrams]]
        return items

    def resolve(
        self,
        judgement: Judgement,
        *,
        queue_s: float = 0.0,
        pass_s: float = 0.0,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> list[Down]:
        """Apply the outcome of the pass begun. logprobs: one for each of judgement.tokens."""
        if self._running is None:
            raise LocalProtocolError("no pass has begun")
        running, self._running, t = self._running, None, self.totals
        judged = len(running.draft) + running.head
        self.totals = Totals(
            t.passes + 1,
            t.judged + judged,
            t.accepted,
            t.filled + (judged == 0),
            t.verifier_accepted,
        )
        of_edge = len(running.draft) - running.ngrams
        accepted = min(judgement.accepted, of_edge)
        own_accepted, kept = judgement.accepted - accepted, tuple(logprobs or ()) or None
        if self._ngrams and running.proposed and accepted == of_edge:
            self._ngrams.judged(running.proposed, running.ngrams, own_accepted)
        begin = self.chain.epoch, len(self.committed)
        commit = Commit(*begin, judgement.tokens, accepted, own_accepted, queue_s, pass_s, kept)
        if judgement.rejection is None or self._ended(judgement.tokens)[1]:
            return self._commit(commit)
        self.chain.rejected([*self.committed, *judgement.tokens])
        return [self._judge.rejected(judgement.rejection, commit)]

    def _commit(self, commit: Commit) -> list[Down]:
        """Commit these tokens up to the end of the answer; return the messages to send."""
        tokens, self.finished = self._ended(commit.tokens)
        accepted = min(commit.accepted, len(tokens))
        own_accepted, t = min(commit.verifier_accepted, len(tokens) - accepted), self.totals
        drafts = t.accepted + accepted + own_accepted
        self.totals = Totals(
            t.passes, t.judged, drafts, t.filled, t.verifier_accepted + own_accepted
        )
        self.committed.extend(tokens)
        self.chain.follow(self.committed)
        if len(tokens) < len(commit.tokens):
            kept = commit.logprobs and commit.logprobs[: len(tokens)]
            commit = replace(
                commit,
                tokens=tokens,
                accepted=accepted,
                verifier_accepted=own_accepted,
                logprobs=kept,
            )
        finish = [Finish(self.finished, self.totals)] if self.finished else []
        return [*([commit] if tokens else []), *finish]

    def _ended(self, tokens: Tokens) -> tuple[Tokens, FinishReason | None]:
        """Cut the tokens at the end of the answer, if they reach it."""
        room = self.request.max_tokens - len(self.committed)
        for i, token in enumerate(tokens[:room]):
            if token in self.request.stop_tokens:
                return tokens[: i + 1], "stop"
        return tokens[:room], "length" if len(tokens) >= room else None
