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

from speculation.protocol.errors import LocalProtocolError, RemoteProtocolError
from speculation.protocol.messages import (
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
from speculation.sampling.judging import TAIL_SAMPLES, Judgement, Rejection
from speculation.verifying.chain import HeldChain
from speculation.verifying.validation import check_form, check_place

NO_CHANCE: Final[Iterator[float]] = iter(())
"""For sessions judged `coupled`, which draw nothing."""

MAX_REDRAWS: Final = 32
"""Redraws answered for one rejection. Each brings TAIL_SAMPLES samples more; an honest edge
hardly ever needs two."""

Tokens = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """K draft tokens from `start` on that one target pass judges. K = 0 is a fill-in pass."""

    start: int
    draft: Tokens
    q: tuple[int, ...]  # `separate`: K weights in 1/Q_SCALE; else all are 0
    u: tuple[float, ...] = ()  # `separate`: K + 1 fresh uniforms in [0, 1)


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

    @property
    def pending(self) -> int:
        """Draft tokens that the next pass could judge."""
        return max(0, self.chain.reach - len(self.committed))

    @property
    def judgeable(self) -> int:
        """Draft tokens to count with when rows are allocated. In `separate` that is all that a
        pass may take, whatever is pending: the draft tokens after one depend on it. Were they
        to decide whether it is judged, the output would not have the target's distribution."""
        most = self.limits.max_verify
        return min(self.pending, most) if self.request.judge == "coupled" else most

    # --- messages of the edge

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

    # --- passes

    def plan(self, most: int) -> Pass:
        """Return the pass that would judge at most `most` pending draft tokens.

        With fill `never` it has one at least: the target generates nothing without a draft.
        """
        start = len(self.committed)
        room = self.request.max_tokens - start - 1  # the target's own token needs a position
        least = int(self.request.fill == "never")
        return self._pass(min(self.pending, max(most, least), self.limits.max_verify, room))

    def begin(self, drafts: int) -> Pass:
        """Begin a pass over exactly `drafts` pending draft tokens; `resolve` must follow."""
        if self._running or self.finished or self.rejection:
            raise LocalProtocolError("no pass may begin now")
        if drafts > self.pending:
            raise LocalProtocolError(f"{drafts} draft tokens are not pending")
        self.chain.broken = False
        self._running = self._pass(drafts)
        return self._running

    def _pass(self, drafts: int) -> Pass:
        start = len(self.committed)
        items = self.chain.drafts(start, drafts)
        return Pass(start, tuple(t for t, _ in items), tuple(w for _, w in items))

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
        judged, self._running, totals = len(self._running.draft), None, self.totals
        filled = totals.filled + (judged == 0)
        self.totals = replace(
            totals, passes=totals.passes + 1, judged=totals.judged + judged, filled=filled
        )
        epoch, start, kept = (
            self.chain.epoch,
            len(self.committed),
            tuple(logprobs or ()) or None,
        )
        down = self._commit(
            Commit(epoch, start, judgement.tokens, judgement.accepted, queue_s, pass_s, kept)
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
        self.totals = replace(self.totals, accepted=self.totals.accepted + accepted)
        self.committed.extend(tokens)
        self.chain.follow(self.committed)
        kept = commit.logprobs and commit.logprobs[: len(tokens)]
        sent = replace(commit, tokens=tokens, accepted=accepted, logprobs=kept)
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
