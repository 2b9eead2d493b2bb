"""The verifier's record of one answer: what is committed, and the passes that commit more.

    receive(Draft)  ->  begin() -> Pass  ->  (the target runs)  ->  resolve(Judgement)

Drafts arrive late, twice or out of order; each names its epoch and position. A pass takes the
draft tokens that follow the committed text without a gap, once all of the chain before them is
known to equal that text. Correctness never rests on what an epoch claims, because every draft
token is judged. No state changes when a method raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from picospec.speculation.proposing.precision import Continuation
from picospec.speculation.protocol.errors import LocalProtocolError, RemoteProtocolError
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    FinishReason,
    Limits,
    Open,
    Pushed,
    Redraw,
    TokenId,
    TokenLogprob,
    Totals,
)
from picospec.speculation.sampling.judging import TAIL_SAMPLES, Judgement, Rejection
from picospec.speculation.verifying.chain import HeldChain
from picospec.speculation.verifying.own_drafts import OwnDrafts
from picospec.speculation.verifying.validation import check_form, check_place

NO_CHANCE: Final[Iterator[float]] = iter(())
"""For sessions judged `coupled`, which draw nothing."""

MAX_REDRAWS: Final = 32
"""Redraws answered for one rejection. Each brings TAIL_SAMPLES samples more; an honest edge
hardly ever needs two."""

MAX_PENDING: Final = 4
"""Pending draft tokens of the edge from which on the verifier proposes none of its own."""

Tokens = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """K draft tokens from `start` on that one target pass judges. K = 0 is a fill-in pass."""

    start: int
    draft: Tokens
    q: tuple[int, ...]  # `separate`: K weights in 1/Q_SCALE; else all are 0
    u: tuple[float, ...] = ()  # `separate`: K + 1 fresh uniforms in [0, 1)
    own: int = 0  # how many of the draft tokens, the last ones, are the verifier's own
    head: int = 0  # in place of a draft: tokens of the target's head, which are unknown here


class VerifyingSession:
    def __init__(self, request: Open, limits: Limits, *, vocabulary_size: int) -> None:
        self.request = request
        self.limits = limits
        self.chain = HeldChain(len(request.committed))
        self.committed: list[TokenId] = list(request.committed)
        self.totals = Totals()
        self.finished: FinishReason | None = None
        self.rejection: Rejection | None = None
        """Set while the recovered token is awaited from the edge: no pass may begin, for the
        target must not generate that token."""

        self._redraws = 0  # answered since the last rejection
        self._vocabulary_size = vocabulary_size
        self._running: Pass | None = None
        self._own = OwnDrafts(request, limits) if request.own_drafts else None
        self._tried: Continuation | None = None  # what was proposed for the pass that runs

    @property
    def pending(self) -> int:
        """Draft tokens that the next pass could judge."""
        return max(0, self.chain.reach - len(self.committed))

    @property
    def head_room(self) -> int:
        """The most tokens of the target's head that a pass may judge. In `separate` it judges
        none, and with fill `never` the target generates nothing without a draft."""
        if self.request.judge == "separate" or self.request.fill == "never":
            return 0
        return max(0, self.request.max_tokens - len(self.committed) - 1)

    @property
    def gains(self) -> list[float]:
        """How likely each draft token that a pass may judge is to be accepted, with all those
        before it. In `separate` all that a pass may take count, whatever is pending: the draft
        tokens after one depend on it. Were they to decide whether it is judged, the output
        would not have the target's distribution."""
        most = self.limits.max_verify
        judgeable = min(self.pending, most) if self.request.judge == "coupled" else most
        gains = [self.chain.acceptance**k for k in range(1, judgeable + 1)]
        if proposed := self._propose():
            reached, right = gains[-1] if gains else 1.0, proposed.precision.right
            gains += [reached * right**k for k in range(1, len(proposed.tokens) + 1)]
        return gains

    def _propose(self) -> Continuation | None:
        """Return the verifier's own draft tokens after the pending ones, if there are any."""
        if self._own is None or (pending := self.pending) >= MAX_PENDING:
            return None
        return self._own.propose(self.committed, self.chain, pending)

    def receive(self, message: Pushed, u: Iterator[float] = NO_CHANCE) -> list[Down]:
        """Take in a message; return what it brings about at once (only in `separate`).

        u: uniforms for the samples of a tail. Raise RemoteProtocolError, naming the field, for
        what no honest edge sends. Void and repeated messages are dropped in silence.
        """
        if isinstance(message, Redraw):
            return self._redraw(message, u)
        check_form(message, self.request.judge, vocabulary_size=self._vocabulary_size)
        check_place(message, self.committed, self.rejection, max_ahead=self.limits.max_ahead)
        chain, epoch = self.chain, message.epoch
        if self.finished or epoch < chain.epoch or chain.is_void(epoch):
            if self._own and epoch == chain.epoch:
                self._own.came_late(message, chain)
            return []
        chain.begin(message)
        down: list[Down] = []
        if message.forced and message.start == len(self.committed):
            self.rejection = None
            down = self._commit(Commit(epoch, message.start, message.tokens[:1]))
        chain.extend(message, self.committed)
        return down

    def _redraw(self, message: Redraw, u: Iterator[float]) -> list[Down]:
        is_old = self.chain.is_void(message.epoch) or message.position != len(self.committed)
        if self.rejection is None or is_old:
            return []
        if self._redraws == MAX_REDRAWS:
            raise RemoteProtocolError(f"Redraw: more than {MAX_REDRAWS} for one rejection")
        self._redraws += 1
        self.chain.end(message.position, message.epoch)
        return [self._reject(self.rejection, u)]

    def plan(self, most: int) -> Pass:
        """Return the pass that would judge at most `most` pending draft tokens.

        With fill `never` it has one at least: the target generates nothing without a draft.
        """
        start = len(self.committed)
        room = self.request.max_tokens - start - 1  # the target's own token needs a position
        least = int(self.request.fill == "never")
        return self._pass(min(self._judgeable, max(most, least), self.limits.max_verify, room))

    @property
    def _judgeable(self) -> int:
        proposed = self._propose()
        return self.pending + (len(proposed.tokens) if proposed else 0)

    def begin(self, drafts: int, *, head: int = 0) -> Pass:
        """Begin a pass over the first `drafts` draft tokens, which are the pending ones and the
        verifier's own after them, or over `head` tokens of the target's head; `resolve` must
        follow."""
        if self._running or self.finished or self.rejection:
            raise LocalProtocolError("no pass may begin now")
        if drafts > self._judgeable:
            raise LocalProtocolError(f"there are no {drafts} draft tokens")
        self.chain.broken = False
        if head:
            self._running, self._tried = Pass(len(self.committed), (), (), head=head), None
        else:
            self._running, self._tried = self._pass(drafts), self._propose()
        return self._running

    def _pass(self, drafts: int) -> Pass:
        start = len(self.committed)
        items = self.chain.drafts(start, min(drafts, self.pending))
        if (own := drafts - len(items)) and (proposed := self._propose()):
            items += [(token, 0) for token in proposed.tokens[:own]]
        return Pass(start, tuple(t for t, _ in items), tuple(w for _, w in items), own=own)

    def resolve(
        self,
        judgement: Judgement,
        *,
        queue_s: float = 0.0,
        pass_s: float = 0.0,
        logprobs: Sequence[TokenLogprob] | None = None,
        u: Iterator[float] = NO_CHANCE,
    ) -> list[Down]:
        """Apply the outcome of the pass begun. logprobs: one for each of judgement.tokens."""
        if self._running is None:
            raise LocalProtocolError("no pass has begun")
        running, self._running, totals = self._running, None, self.totals
        judged = len(running.draft) + running.head
        filled = totals.filled + (judged == 0)
        self.totals = replace(
            totals, passes=totals.passes + 1, judged=totals.judged + judged, filled=filled
        )
        accepted = min(judgement.accepted, len(running.draft) - running.own)
        own, kept = judgement.accepted - accepted, tuple(logprobs or ()) or None
        if self._own and self._tried and accepted == len(running.draft) - running.own:
            self._own.judged(self._tried, running.own, own)
        place = self.chain.epoch, len(self.committed)
        down = self._commit(
            Commit(*place, judgement.tokens, accepted, own, queue_s, pass_s, kept)
        )
        if judgement.rejection and not self.finished:
            self.rejection = judgement.rejection
            self._redraws = 0
            self.chain.rejected(len(self.committed))
            down.append(self._reject(judgement.rejection, u))
        return down

    def _commit(self, commit: Commit) -> list[Down]:
        """Commit these tokens up to the end of the answer; return what is sent of it."""
        tokens, self.finished = self._ended(commit.tokens)
        accepted = min(commit.accepted, len(tokens))
        own, totals = min(commit.own, len(tokens) - accepted), self.totals
        self.totals = replace(
            totals, accepted=totals.accepted + accepted + own, own=totals.own + own
        )
        self.committed.extend(tokens)
        self.chain.follow(self.committed)
        kept = commit.logprobs and commit.logprobs[: len(tokens)]
        sent = replace(commit, tokens=tokens, accepted=accepted, own=own, logprobs=kept)
        finish = [Finish(self.finished, self.totals)] if self.finished else []
        return [*([sent] if tokens else []), *finish]

    def _ended(self, tokens: Tokens) -> tuple[Tokens, FinishReason | None]:
        """Cut the tokens at the end of the answer, if they reach it."""
        room = self.request.max_tokens - len(self.committed)
        for i, token in enumerate(tokens[:room]):
            if token in self.request.stop_tokens:
                return tokens[: i + 1], "stop"
        return tokens[:room], "length" if len(tokens) >= room else None

    def _reject(self, rejection: Rejection, u: Iterator[float]) -> Down:
        samples = list(islice(u, TAIL_SAMPLES))
        return rejection.message(self.chain.epoch, len(self.committed), samples)
