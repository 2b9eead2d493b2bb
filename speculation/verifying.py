"""The cloud's half of a session, without I/O.

    receive(Draft)  ->  begin() -> Pass  ->  (the target runs)  ->  resolve(Judgement)

Drafts arrive late, twice or out of order; each names its epoch and position. The session keeps
those of the newest epoch, at most max_ahead beyond the committed text, and drops what is void.
A branch is held until its epoch's chain breaks: taken, it begins the next epoch by itself.
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
from speculation.honesty import check_branch, check_form, check_place
from speculation.judging import TAIL_SAMPLES, Judgement, Refusal
from speculation.messages import (
    Branch,
    Commit,
    Down,
    Draft,
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
from speculation.smoothing import smoothed

Tokens = tuple[TokenId, ...]
NO_CHANCE: Final[Iterator[float]] = iter(())
"""For sessions judged `coupled`, which draw nothing."""

ACCEPTANCE_AT_FIRST: Final = 0.9
"""Rather too high: at first a row too many costs less than one too few; .8 costs code 2 %.
Counts as one draft: as four, a drafter that is always wrong cost 2 to 3 % of 64 tokens."""

ACCEPTANCE_WEIGHT: Final = 1 / 16
"""Of the latest draft in the running mean; the first few weigh more, as in a plain mean."""

MOST_REDRAWS: Final = 32
"""For one refusal. Each brings TAIL_SAMPLES more; an honest edge hardly ever needs two."""


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

        self.wrong_at = 0
        """Where it was wrong."""

        self.heard = (0, 0)
        """Epoch and end of the latest drafts to come, those known to be wrong left out."""

        self.acceptance = ACCEPTANCE_AT_FIRST
        """Running estimate that a draft equals the text where the ones before it do; learned
        from every draft that arrives, judged or overtaken."""

        self._compared = 0
        self._redraws = 0  # answered since the last refusal
        self._limits = limits
        self._vocabulary_size = vocabulary_size
        self._void = -1  # epochs up to this one are known to be wrong
        self._agreed = 0  # positions before this one: the chain is known to equal the text
        self._drafts: dict[int, tuple[TokenId, int]] = {}  # from _agreed on: token, weight
        self._branches: dict[tuple[int, TokenId], Tokens] = {}  # where, with what: what follows
        self._running: Pass | None = None

    @property
    def pending(self) -> int:
        """Draft tokens that the next pass could judge."""
        return max(0, self.reach - len(self.committed))

    @property
    def reach(self) -> int:
        """The position after the chain; the text may have gone further."""
        end = self._agreed
        while end in self._drafts:
            end += 1
        return end

    @property
    def affordable(self) -> int:
        """Draft tokens to count with when rows are shared out, before `begin` takes them.

        No more than it takes: those beyond would seem to cost nothing. In `separate` all it may
        take, whatever is pending: the drafts after one depend on it, so were they to decide
        whether it is judged, the output would not have the law p.
        """
        most = self._limits.max_verify
        return min(self.pending, most) if self.request.judge == "coupled" else most

    # --- up

    def receive(self, message: Pushed, u: Iterator[float] = NO_CHANCE) -> list[Down]:
        """Take in a message; return what it brings about at once (only in `separate`).

        u: uniforms for the samples of a tail. Raise RemoteProtocolError, naming the field, for
        what no honest edge sends. Void and repeated messages are dropped in silence.
        """
        if isinstance(message, Redraw):
            return self._redraw(message, u)
        if isinstance(message, Branch):
            self._hold(message)
            return []
        check_form(message, self.request.judge, vocabulary_size=self._vocabulary_size)
        max_ahead = self._limits.max_ahead
        check_place(message, self.committed, self.refusal, max_ahead=max_ahead)
        if self.finished or message.epoch < self.epoch or message.epoch <= self._void:
            return []
        self._check_agreement(message)
        self.heard = max(self.heard, (message.epoch, message.start + len(message.tokens)))
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            self._agreed = message.start - message.behind
            self._drafts.clear()
            self._branches.clear()
        awaited = message.forced and message.start == len(self.committed)
        down = self._force(message.tokens[0]) if awaited else []
        guesses = message.tokens[message.forced :]
        weights = (0,) * len(guesses) if message.q is None else message.q
        placed = enumerate(zip(guesses, weights, strict=True), message.start + message.forced)
        self._drafts.update((at, item) for at, item in placed if at >= self._agreed)
        self._agree(message.start - message.behind + message.forced)
        return down

    def _check_agreement(self, draft: Draft) -> None:
        """Raise RemoteProtocolError when an epoch says two tokens at one position."""
        if draft.epoch != self.epoch:
            return
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
                self._learn(stands)
                if not stands:
                    self._break(self._agreed)
                    self._branch()
                    return
            self._agreed += 1

    def _hold(self, branch: Branch) -> None:
        """Keep a branch of this chain; one that the text has taken already is the next."""
        max_ahead = self._limits.max_ahead
        check_branch(
            branch,
            self.request,
            self.committed,
            vocabulary_size=self._vocabulary_size,
            max_ahead=max_ahead,
        )
        if self.finished or branch.epoch != self.epoch or len(self._branches) >= max_ahead:
            return
        self._branches.setdefault((branch.start, branch.tokens[0]), branch.tokens[1:])
        if self.epoch == self._void:
            self._branch()

    def _branch(self) -> None:
        """Begin the next epoch with the branch that the text took where it left the chain."""
        taken = self._branches.get((self.wrong_at, self.committed[self.wrong_at]))
        if taken is None:
            return
        self._branches.clear()
        self.epoch += 1
        self._agreed = self.wrong_at + 1
        self._drafts = {at: (token, 0) for at, token in enumerate(taken, self._agreed)}
        self._agree(self._agreed)

    def _learn(self, stands: bool) -> None:
        self._compared += 1
        weight = max(ACCEPTANCE_WEIGHT, 1 / (1 + self._compared))
        self.acceptance = smoothed(self.acceptance, stands, weight)

    def _force(self, token: TokenId) -> list[Down]:
        self.refusal = None
        return self._commit((token,), accepted=0)

    def _redraw(self, message: Redraw, u: Iterator[float]) -> list[Down]:
        is_old = message.epoch <= self._void or message.position != len(self.committed)
        if self.refusal is None or is_old:
            return []
        if self._redraws == MOST_REDRAWS:
            raise RemoteProtocolError(f"Redraw: more than {MOST_REDRAWS} for one refusal")
        self._redraws += 1
        self.epoch = max(self.epoch, message.epoch)
        self._break(message.position)
        return [self._refuse(self.refusal, u)]

    # --- passes

    def begin(self, most: int, *, exact: bool = False) -> Pass:
        """Take at most `most` pending drafts into a pass; `resolve` must follow.

        With fill `never` one at least: the target says nothing without a draft. Not if exact:
        then the target's rows are laid out already, as for a prompt's last token.
        """
        if self._running or self.finished or self.refusal:
            raise LocalProtocolError("no pass may begin now")
        start = len(self.committed)
        room = self.request.max_tokens - start - 1  # the target's own token needs a place
        least = int(self.request.fill == "never" and not exact)
        count = min(self.pending, max(most, least), self._limits.max_verify, room)
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
            self._redraws = 0
            self._learn(False)
            self._break(len(self.committed))
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

    def _break(self, position: int) -> None:
        self.wrong_at = position
        self._void = self.epoch
        self._drafts.clear()
        self.broken = True
