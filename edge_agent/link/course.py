"""One answer's way over the fleet: where its next session is opened, and when it is given up.

It has no clock and does no I/O. `choose` says where to open a session, how long to wait first,
or why there is nowhere; `opened` and `ended` tell it what became of the session.

A session that was lost is opened again: at once at the same verifier, where the link broke and
the verifier may live, and else at another one that is ready. Where none is, the answer waits,
up to a deadline. An answer that has not begun waits for nothing: its client can ask again.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from picospec.edge_agent.link.fleet import Endpoint, Fleet
from picospec.edge_agent.link.upstream_errors import LinkDown
from picospec.gateway.errors import (
    ApiError,
    Draining,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unavailable,
)
from picospec.gateway.http.request_body import LEAST_BYTES_PER_S
from picospec.models.grammars.checker import ANSWER_TIMEOUT_S
from picospec.speculation.protocol.messages import RUN_CHARACTERS

MAX_LOST: Final = 3
"""Sessions that may be lost at one position of the text; then the answer is given up. If it is
the answer that breaks verifiers, it must not break all of them."""

HANDOVER_FAULT: Final = "shutting_down"
"""The Fault of a verifier that shuts down in order. The first one of each verifier does not
count towards MAX_LOST."""

IDLE: Final = "idle_timeout"
"""The code of a session that brings no token: its verifier is not asked again."""

JITTER_S: Final = 0.2
"""A lost session is opened elsewhere after a wait up to this, so that all sessions of a
verifier do not come to another one at the same moment."""

MIN_WAIT_S: Final = 0.1
MAX_WAIT_S: Final = 1.0
"""Shortest and longest wait, on average, between two looks for a verifier that is ready."""

RESPONSE_TIMEOUT_S: Final = 10.0
"""The first byte of a stream must come within this time, where only this verifier can give
it."""

OPEN_TIMEOUT_S: Final = 2.0
"""Time until the first byte of a stream where another verifier could be asked. What the upload
of the Open takes at LEAST_BYTES_PER_S is added to it."""


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float
    asks: bool = True
    """It says whether all verifiers are then asked if they are ready."""


class Course:
    """identity: of the answer's texts. deadline_s: how long an answer whose session was lost
    waits for a verifier. chance: spreads the waits of many answers."""

    def __init__(self, fleet: Fleet, identity: str, deadline_s: float, chance: Random) -> None:
        self._fleet = fleet
        self._identity = identity
        self._deadline_s = deadline_s
        self._chance = chance
        self._tried: set[Endpoint] = set()
        """These verifiers lost the session or did not take it; they may do so after a wait."""

        self._barred: set[Endpoint] = set()
        """These verifiers will never take it, as with a wrong key or another model, or let it
        wait for too long."""

        self.endpoint: Endpoint | None = None
        """The session was opened there last."""

        self._again: Endpoint | None = None  # where to try once more, at once
        self._may_repeat = True  # whether that was not done yet since the last token
        self._error: ApiError | None = None  # what the last session ended with
        self._is_over = False
        self._lost_at: float | None = None  # when a session was lost last
        self._lost_here = 0  # sessions lost since the last token
        self._left: set[Endpoint | None] = set()  # those that have handed over since then
        self._run = ""  # of the verifier that opened the last session
        self._is_suspect = False  # it was the link that broke, or this verifier's process
        self._pause_s = 0.0
        self._waits = 0  # since the last token
        self._has_asked = False

    def choose(self, now: float) -> Endpoint | Wait:
        """Return where to open the next session, or how long to wait and then call again.
        Raises ApiError where the answer is given up."""
        late = self._lost_at is not None and now >= self._lost_at + self._deadline_s
        if self._error is not None and (self._is_over or late):
            raise self._error
        if self._again is not None:
            self.endpoint, self._again = self._again, None
            return self.endpoint
        if self._pause_s > 0.0:
            pause_s, self._pause_s = self._pause_s, 0.0
            return Wait(pause_s, asks=False)
        if best := self._ready(self._tried) or (None if self._error else self._choose(set())):
            self.endpoint = best
            return best
        return self._nowhere(now)

    def _nowhere(self, now: float) -> Wait:
        """Nobody is ready: wait, and look again, unless that is of no use."""
        error = self._error or Unavailable("no verifier can go on with this answer")
        if self._lost_at is None:
            if isinstance(error, Draining) and not self._has_asked:
                self._has_asked = True
                return Wait(0.0)  # one that was restarted just now may be ready
            raise error
        if self._choose(set()) is None:
            raise error
        mean_s = min(MAX_WAIT_S, MIN_WAIT_S * 2**self._waits)
        wait_s = mean_s * self._chance.uniform(0.5, 1.5)
        if isinstance(error, Overloaded):
            wait_s += error.retry_after_s
        self._waits += 1
        self._tried.clear()
        return Wait(min(wait_s, self._lost_at + self._deadline_s - now))

    def opened(self, session: str) -> bool:
        """The verifier has taken the session. Return whether it is the process that had the one
        before: then it was the link that lost it."""
        run, self._tried = session[:RUN_CHARACTERS], set()
        lives, self._run = run == self._run, run
        if lives and self._is_suspect:
            self._lost_here -= 1
        self._is_suspect = False
        return lives

    def ended(self, error: ApiError, now: float, *, opened: bool, progressed: bool) -> None:
        """The session ended before its Finish. opened: whether the verifier had taken it.
        progressed: whether a token came."""
        self._error = error
        if opened:
            self._lost(error, now, progressed)
        else:
            self._turned_away(error)
        if not self._is_over and self._may_repeat and self._is_worth_repeating(error):
            self._again, self._may_repeat = self.endpoint, False

    def _is_worth_repeating(self, error: ApiError) -> bool:
        """Return whether the same verifier should be tried at once. A refused connection means
        that its process is gone; a silent one, that it may be far from coming back."""
        if not isinstance(error, LinkDown) or error.how == "refused":
            return False
        return error.how == "broken" or not self.is_elsewhere

    def _lost(self, error: ApiError, now: float, progressed: bool) -> None:
        self._lost_at = now
        self._pause_s = self._chance.uniform(0.0, JITTER_S)
        if self.endpoint is not None:
            self._tried = {self.endpoint}
            if error.error_code == IDLE:
                self._barred.add(self.endpoint)
        if progressed:
            self._lost_here = self._waits = 0
            self._may_repeat = True
            self._left.clear()
        if error.error_code != HANDOVER_FAULT or self.endpoint in self._left:
            self._lost_here += 1
        else:
            self._left.add(self.endpoint)
        self._is_suspect = isinstance(error, LinkDown)
        self._is_over = not isinstance(error, Unavailable | Overloaded)
        if not self._is_over and self._lost_here >= MAX_LOST:
            reason = f"{MAX_LOST} verifiers were lost at one token of the answer"
            self._error = Unavailable(f"{reason}; the last: {error}", code=error.error_code)
            self._is_over = True

    def _turned_away(self, error: ApiError) -> None:
        if self.endpoint is None:
            return
        self._is_over = self._lost_at is None and isinstance(error, InvalidRequest | TooLarge)
        passes = isinstance(error, Unavailable | Overloaded)
        if passes and error.error_code != "identity_mismatch":
            self._tried.add(self.endpoint)
        else:
            self._barred.add(self.endpoint)

    @property
    def is_elsewhere(self) -> bool:
        """Whether another verifier could take over now."""
        return self._ready({self.endpoint} if self.endpoint else set()) is not None

    def _ready(self, without: set[Endpoint]) -> Endpoint | None:
        best = self._choose(without)
        return best if best and best.is_ready else None

    def _choose(self, without: set[Endpoint]) -> Endpoint | None:
        return self._fleet.choose(self._identity, without | self._barred)

    def patience_s(self, open_bytes: int, now: float, *, constrained: bool = False) -> float:
        """Return how long an Open of that size may wait for the first byte of its stream; after
        a lost session, no longer than the answer waits for a verifier. constrained: it has a
        grammar, which a verifier tries first."""
        within_s = RESPONSE_TIMEOUT_S
        if self.is_elsewhere:
            within_s = min(within_s, OPEN_TIMEOUT_S + open_bytes / LEAST_BYTES_PER_S)
        if constrained:
            within_s += ANSWER_TIMEOUT_S
        if self._lost_at is None:
            return within_s
        return min(within_s, self._lost_at + self._deadline_s - now)
