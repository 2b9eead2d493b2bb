"""Decides where one answer's next session is opened, and when the answer is given up.

It has no clock and does no I/O. `choose` returns where to open a session or how long to wait
first, or raises why there is nowhere; `opened` and `ended` take in the session's outcome.

A lost session is opened again: at once at the same verifier if the link broke and the verifier
may be alive, else at another one that is ready. If none is ready, the answer waits, up to a
deadline. An answer that has not begun does not wait: its client can ask again.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from picospec.edge_agent.link.connection import LinkDown
from picospec.edge_agent.link.uplink import Endpoint, Fleet
from picospec.gateway.errors import (
    ApiError,
    Draining,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unavailable,
)
from picospec.gateway.http import MIN_BYTES_PER_S
from picospec.models.compiler import ANSWER_TIMEOUT_S
from picospec.speculation.messages import RUN_CHARACTERS

MAX_LOST: Final = 3
"""This many sessions may be lost at one position of the text; then the answer is given up. If
the answer itself breaks verifiers, it must not break all of them."""

HANDOVER_FAULT: Final = "shutting_down"
"""The Fault of a planned shutdown. The first of each verifier since the last token does not
count towards MAX_LOST."""

IDLE: Final = "idle_timeout"
"""The error code if no token comes: the answer goes on at another verifier."""

JITTER_S: Final = 0.2
"""A lost session is opened elsewhere after a random wait of up to this, so that the sessions of
one verifier do not all come to another one at the same moment."""

MIN_WAIT_S: Final = 0.1
MAX_WAIT_S: Final = 1.0
"""The mean wait between searches for a ready verifier grows from the first to the second."""

RESPONSE_TIMEOUT_S: Final = 10.0
"""The first byte of a stream must come within this time if no other verifier could be asked."""

OPEN_TIMEOUT_S: Final = 2.0
"""The first byte of a stream must come within this time if another verifier could be asked; the
time that uploading the Open takes at MIN_BYTES_PER_S is added."""


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float
    probes_all: bool = True
    """True if all verifiers are then asked whether they are ready."""


class Course:
    """identity: that of the answer's texts. deadline_s: an answer whose session was lost waits
    this long for a verifier. chance: spreads the waits of many answers."""

    def __init__(self, fleet: Fleet, identity: str, deadline_s: float, chance: Random) -> None:
        self._fleet = fleet
        self._identity = identity
        self._deadline_s = deadline_s
        self._chance = chance
        self._tried: set[Endpoint] = set()
        """These verifiers lost the session or refused it; after a wait they may take it."""

        self._excluded: set[Endpoint] = set()
        """These verifiers will never take the session, as with a wrong key or another model, or
        let it wait for too long."""

        self.endpoint: Endpoint | None = None
        """The last session was opened there."""

        self._retry_endpoint: Endpoint | None = None  # to be tried once more, at once
        self._may_repeat = True  # True if there was no such try since the last token
        self._error: ApiError | None = None  # the error that ended the last session
        self._is_over = False
        self._lost_at: float | None = None  # when a session was last lost
        self._lost_here = 0  # sessions lost since the last token
        self._handed_over = set[Endpoint | None]()  # no further handover by them is free
        self._run = ""  # the run of the verifier that opened the last session
        self._is_suspect = False  # the link or this verifier's process was lost
        self._pause_s = 0.0
        self._waits = 0  # since the last token
        self._has_probed = False

    def choose(self, now: float) -> Endpoint | Wait:
        """Return where to open the next session, or how long to wait before calling again.
        Raises ApiError if the answer is given up."""
        late = self._lost_at is not None and now >= self._lost_at + self._deadline_s
        if self._error is not None and (self._is_over or late):
            raise self._error
        if self._retry_endpoint is not None:
            self.endpoint, self._retry_endpoint = self._retry_endpoint, None
            return self.endpoint
        if self._pause_s > 0.0:
            pause_s, self._pause_s = self._pause_s, 0.0
            return Wait(pause_s, probes_all=False)
        if best := self._ready(self._tried) or (None if self._error else self._choose(set())):
            self.endpoint = best
            return best
        return self._wait_or_raise(now)

    def _wait_or_raise(self, now: float) -> Wait:
        """Return how long to wait for a ready verifier; raise if waiting is of no use."""
        error = self._error or Unavailable("no verifier can go on with this answer")
        if self._lost_at is None:
            if isinstance(error, Draining) and not self._has_probed:
                self._has_probed = True
                return Wait(0.0)  # one that has just restarted may be ready
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
        """Note that the verifier has taken the session. Return True if its process had the
        previous one too. A LinkDown then means that only the link was lost."""
        run, self._tried = session[:RUN_CHARACTERS], set()
        is_same_process, self._run = run == self._run, run
        if is_same_process and self._is_suspect:
            self._lost_here -= 1
        self._is_suspect = False
        return is_same_process

    def ended(self, error: ApiError, now: float, *, opened: bool, progressed: bool) -> None:
        """Note that the session ended before its Finish. opened: True if the verifier had taken
        it. progressed: True if it brought a token."""
        self._error = error
        if opened:
            self._lost(error, now, progressed)
        else:
            self._refused(error)
        if not self._is_over and self._may_repeat and self._is_worth_repeating(error):
            self._retry_endpoint, self._may_repeat = self.endpoint, False

    def _is_worth_repeating(self, error: ApiError) -> bool:
        """Return True if the same verifier should be tried at once. A refused connection means
        that its process is gone; a silent one may stay away for long."""
        if not isinstance(error, LinkDown) or error.how == "refused":
            return False
        return error.how == "broken" or not self.has_alternative

    def _lost(self, error: ApiError, now: float, progressed: bool) -> None:
        self._lost_at = now
        self._pause_s = self._chance.uniform(0.0, JITTER_S)
        if self.endpoint is not None:
            self._tried = {self.endpoint}
            if error.error_code == IDLE:
                self._excluded.add(self.endpoint)
        if progressed:
            self._lost_here = self._waits = 0
            self._may_repeat = True
            self._handed_over.clear()
        if error.error_code != HANDOVER_FAULT or self.endpoint in self._handed_over:
            self._lost_here += 1
        else:
            self._handed_over.add(self.endpoint)
        self._is_suspect = isinstance(error, LinkDown)
        self._is_over = not isinstance(error, Unavailable | Overloaded)
        if not self._is_over and self._lost_here >= MAX_LOST:
            reason = f"{MAX_LOST} verifiers were lost at one token of the answer"
            self._error = Unavailable(f"{reason}; the last: {error}", code=error.error_code)
            self._is_over = True

    def _refused(self, error: ApiError) -> None:
        if self.endpoint is None:
            return
        self._is_over = self._lost_at is None and isinstance(error, InvalidRequest | TooLarge)
        passes = isinstance(error, Unavailable | Overloaded)
        if passes and error.error_code != "identity_mismatch":
            self._tried.add(self.endpoint)
        else:
            self._excluded.add(self.endpoint)

    @property
    def has_alternative(self) -> bool:
        """True if another verifier could take over now."""
        return self._ready({self.endpoint} if self.endpoint else set()) is not None

    def _ready(self, without: set[Endpoint]) -> Endpoint | None:
        best = self._choose(without)
        return best if best and best.is_ready else None

    def _choose(self, without: set[Endpoint]) -> Endpoint | None:
        return self._fleet.choose(self._identity, without | self._excluded)

    def timeout_s(self, open_bytes: int, now: float, *, constrained: bool = False) -> float:
        """Return how long an Open of this size may wait for the first byte of its stream; after
        a lost session, at most until the deadline. constrained: True if the request has a
        grammar, which a verifier tries first."""
        within_s = RESPONSE_TIMEOUT_S
        if self.has_alternative:
            within_s = min(within_s, OPEN_TIMEOUT_S + open_bytes / MIN_BYTES_PER_S)
        if constrained:
            within_s += ANSWER_TIMEOUT_S
        if self._lost_at is None:
            return within_s
        return min(within_s, self._lost_at + self._deadline_s - now)
