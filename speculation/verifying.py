"""The cloud's half of a session, without I/O.

    receive(Draft)  ->  begin() -> Pass  ->  (the target runs)  ->  resolve(Judgement)

Drafts arrive late, twice or out of order; each names its epoch and position. The session keeps
those of the newest epoch, at most max_ahead beyond the committed text, and drops what is void.
A pass takes the drafts that follow the committed text without a gap, once all of the chain
before them is known to equal that text. Correctness never rests on what an epoch claims: every
draft is judged. No state changes when a method raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.judging import TAIL_SAMPLES, Judgement, Refusal
from speculation.laws import Q_SCALE
from speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    FinishReason,
    Limits,
    Open,
    Redraw,
    TokenId,
    TokenLogprob,
    Totals,
)

Tokens = tuple[TokenId, ...]
NO_CHANCE: Final[Iterator[float]] = iter(())
"""For sessions judged `coupled`, which draw nothing."""

ACCEPTANCE_AT_FIRST: Final = 0.8  # of a well-matched pair, over code, maths and chat
ACCEPTANCE_WEIGHT: Final = 1 / 16


@dataclass(frozen=True, slots=True)
class Pass:
    """What one target pass judges: K draft tokens from `start` on; K = 0 is a fill-in."""

    start: int
    draft: tuple[TokenId, ...]
    q: tuple[int, ...]
    """`separate`: K weights in 1/Q_SCALE; else all 0."""


class VerifyingSession:
    def __init__(self, request: Open, limits: Limits, *, vocabulary_size: int) -> None:
        self.request = request
        self.epoch = 0
        self.committed: list[TokenId] = []
        self.totals = Totals()
        self.finished: FinishReason | None = None
        self.refusal: Refusal | None = None
        """Set while a replacement is awaited: no pass may begin, the target must not say it."""

        self.broken = False
        """The last chain was wrong, and no pass has begun since."""

        self.acceptance = ACCEPTANCE_AT_FIRST
        """Running estimate that a draft equals the text where the ones before it do; learned
        from every draft that arrives, judged or overtaken."""

        self._limits = limits
        self._vocabulary_size = vocabulary_size
        self._void = -1  # epochs up to this one are known to be wrong
        self._agreed = 0  # positions before this one: the chain is known to equal the text
        self._drafts: dict[int, tuple[TokenId, int]] = {}  # from _agreed on: token, weight
        self._running: Pass | None = None

    @property
    def pending(self) -> int:
        """Draft tokens that the next pass could judge."""
        count, start = 0, len(self.committed)
        if self._agreed < start:
            return 0
        while start + count in self._drafts:
            count += 1
        return count

    # --- up

    def receive(self, message: Draft | Redraw, u: Iterator[float] = NO_CHANCE) -> list[Down]:
        """Take in a message; return what it brings about at once (only in `separate`).

        u: uniforms for the samples of a tail. Raise RemoteProtocolError, naming the field, for
        what no honest edge sends. Void and repeated messages are dropped in silence.
        """
        if isinstance(message, Redraw):
            return self._redraw(message, u)
        self._check(message)
        if self.finished or message.epoch < self.epoch or message.epoch <= self._void:
            return []
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            self._agreed = message.start - message.behind
            self._drafts.clear()
        down = self._force(message.tokens[0]) if message.forced and self.refusal else []
        weights = (0,) * len(message.tokens) if message.q is None else message.q
        items = zip(message.tokens, (0,) * message.forced + weights, strict=True)
        placed = enumerate(items, message.start)
        self._drafts.update((at, item) for at, item in placed if at >= self._agreed)
        self._agree(message.start - message.behind)
        return down

    def _check(self, draft: Draft) -> None:
        """Raise RemoteProtocolError unless this draft could come from an honest edge."""
        separate = self.request.judge == "separate"
        if not draft.tokens:
            raise RemoteProtocolError("Draft.tokens: empty")
        if max(draft.tokens) >= self._vocabulary_size:
            raise RemoteProtocolError(f"Draft.tokens: {max(draft.tokens)} is not a token")
        if not 0 <= draft.start - draft.behind <= len(self.committed):
            raise RemoteProtocolError(f"Draft.behind: {draft.behind} cannot be")
        ahead = draft.start + len(draft.tokens) - len(self.committed)
        if ahead > self._limits.max_ahead:
            raise RemoteProtocolError(
                f"Draft.start: {ahead} ahead, over {self._limits.max_ahead}"
            )
        if separate != (draft.q is not None):
            raise RemoteProtocolError(f"Draft.q: wrong for judge {self.request.judge}")
        if len(draft.q or ()) != (len(draft.tokens) - draft.forced if separate else 0):
            raise RemoteProtocolError("Draft.q: one weight for each drafted token")
        if draft.q and not all(0 < weight <= Q_SCALE for weight in draft.q):
            raise RemoteProtocolError(f"Draft.q: a weight outside 1..{Q_SCALE}")
        if draft.forced:
            self._check_forced(draft)
        if draft.epoch == self.epoch and draft.epoch > self._void:
            self._check_agreement(draft)

    def _check_forced(self, draft: Draft) -> None:
        token, position = draft.tokens[0], draft.start
        if self.request.judge == "coupled":
            raise RemoteProtocolError("Draft.forced: only in judge `separate`")
        if position < len(self.committed):
            if self.committed[position] != token:
                raise RemoteProtocolError(f"Draft.forced: position {position} is committed")
        elif self.refusal is None or position > len(self.committed):
            raise RemoteProtocolError(f"Draft.forced: no replacement awaited at {position}")
        elif not self.refusal.allows(token):
            raise RemoteProtocolError(f"Draft.forced: token {token} cannot replace the refused")

    def _check_agreement(self, draft: Draft) -> None:
        for position, token in enumerate(draft.tokens, draft.start):
            if self._drafts.get(position, (token,))[0] != token:
                raise RemoteProtocolError(f"Draft.tokens: position {position} has changed")

    def _agree(self, known: int) -> None:
        """Compare the chain with the text, from the first position where it is not known."""
        while self._agreed < len(self.committed):
            guess = self._drafts.pop(self._agreed, None)
            if guess is None and self._agreed >= known:
                return
            if guess is not None:
                stands = guess[0] == self.committed[self._agreed]
                self.acceptance += ACCEPTANCE_WEIGHT * (stands - self.acceptance)
                if not stands:
                    self._break()
                    return
            self._agreed += 1

    def _force(self, token: TokenId) -> list[Down]:
        self.refusal = None
        return self._commit((token,), accepted=0)

    def _redraw(self, message: Redraw, u: Iterator[float]) -> list[Down]:
        if self.refusal is None or message.position != len(self.committed):
            return []
        return [self._refuse(self.refusal, u)]

    # --- passes

    def begin(self, most: int) -> Pass:
        """Take at most `most` pending drafts into a pass; `resolve` must follow."""
        if self._running or self.finished or self.refusal:
            raise LocalProtocolError("no pass may begin now")
        start = len(self.committed)
        room = self.request.max_tokens - start - 1  # the target's own token needs a place
        count = min(self.pending, most, self._limits.max_verify, room)
        items = [self._drafts[start + i] for i in range(count)]
        self.broken = False
        self._running = Pass(start, tuple(t for t, _ in items), tuple(w for _, w in items))
        return self._running

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
        judged, self._running = len(self._running.draft), None
        self.totals = replace(
            self.totals,
            passes=self.totals.passes + 1,
            judged=self.totals.judged + judged,
            filled=self.totals.filled + (judged == 0),
        )
        down = self._commit(
            judgement.tokens, judgement.accepted, queue_s, pass_s, tuple(logprobs or ()) or None
        )
        if judgement.refusal and not self.finished:
            self.refusal = judgement.refusal
            self._break()
            down.append(self._refuse(judgement.refusal, u))
        return down

    def _commit(
        self,
        tokens: Tokens,
        accepted: int,
        queue_s: float = 0.0,
        pass_s: float = 0.0,
        logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> list[Down]:
        start = len(self.committed)
        tokens, self.finished = self._ended(tokens)
        accepted = min(accepted, len(tokens))
        self.totals = replace(self.totals, accepted=self.totals.accepted + accepted)
        self.committed.extend(tokens)
        self._agree(self._agreed)
        down: list[Down] = []
        if tokens:
            kept = logprobs and logprobs[: len(tokens)]
            down.append(Commit(self.epoch, start, tokens, accepted, queue_s, pass_s, kept))
        if self.finished:
            down.append(Finish(self.finished, self.totals))
        return down

    def _ended(self, tokens: Tokens) -> tuple[Tokens, FinishReason | None]:
        """Cut the tokens at the end of the answer, if they reach it."""
        room = self.request.max_tokens - len(self.committed)
        for i, token in enumerate(tokens[:room]):
            if token in self.request.stop_tokens:
                return tokens[: i + 1], "stop"
        return tokens[:room], "length" if len(tokens) >= room else None

    def _refuse(self, refusal: Refusal, u: Iterator[float]) -> Down:
        uniforms = list(islice(u, TAIL_SAMPLES))
        return refusal.message(self.epoch, len(self.committed), uniforms)

    def _break(self) -> None:
        self._void = self.epoch
        self._drafts.clear()
        self.broken = True
