"""Decides where an answer's next session is opened, and when the answer is given up.

Nothing here has a clock or does I/O. A KnownVerifier is told what its verifier did, and a
FailoverPolicy what became of a session, by `opened` and `ended`. `choose` returns where to open
the next one or how long to wait first, or raises why there is nowhere. TRANSITIONS has the
states of an answer and all ways from one to another.

A lost session is opened again: at once at the same verifier if the link broke and the verifier
may be alive, else at another one that is ready. If none is ready, the answer waits, up to a
deadline. An answer that has not begun does not wait: its client can ask again.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from random import Random
from typing import Final, Generic

from edge_agent.link.errors import LinkDown
from edge_agent.link.known_verifiers import KnownVerifiers, V
from edge_agent.link.prefixes import PromptBlocks
from gateway.errors import ApiError, Draining, InvalidRequest, Overloaded, TooLarge, Unavailable
from gateway.request_body import MIN_BYTES_PER_S
from local_models.checker import ANSWER_TIMEOUT_S
from speculation.errors import LocalProtocolError
from speculation.messages import RUN_CHARACTERS

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


class State(Enum):
    """The states of an answer, which has begun when the first verifier has taken a session."""

    NEW = auto()  # no verifier was asked
    OPENING = auto()  # a verifier is asked to begin the answer
    REFUSED = auto()  # none has begun it; another one may, but it waits for none
    REPEATING = auto()  # the link broke: the same verifier is asked once more, at once
    OPEN = auto()  # a verifier has taken a session
    LOST = auto()  # the answer waits for a verifier that goes on, up to the deadline
    RESUMING = auto()  # REPEATING, of an answer that has begun
    REOPENING = auto()  # OPENING, of an answer that has begun
    OVER = auto()  # the answer is given up, and `choose` raises why


class Trigger(Enum):
    """The causes of transitions between the states."""

    CHOSEN = auto()  # a verifier was chosen for the next session
    OPENED = auto()  # the verifier has taken it
    ENDED = auto()  # the verifier has refused it, or it has ended before its Finish
    REPEATED = auto()  # the link alone has broken, as far as is known
    GIVEN_UP = auto()  # no verifier may go on, or none did in time


TRANSITIONS: Final[Mapping[State, Mapping[Trigger, State]]] = {
    State.NEW: {Trigger.CHOSEN: State.OPENING, Trigger.GIVEN_UP: State.OVER},
    State.OPENING: {Trigger.OPENED: State.OPEN, Trigger.ENDED: State.REFUSED},
    State.REFUSED: {
        Trigger.CHOSEN: State.OPENING,
        Trigger.REPEATED: State.REPEATING,
        Trigger.GIVEN_UP: State.OVER,
    },
    State.REPEATING: {Trigger.CHOSEN: State.OPENING},
    State.OPEN: {Trigger.ENDED: State.LOST},
    State.LOST: {
        Trigger.CHOSEN: State.REOPENING,
        Trigger.REPEATED: State.RESUMING,
        Trigger.GIVEN_UP: State.OVER,
    },
    State.RESUMING: {Trigger.CHOSEN: State.REOPENING, Trigger.GIVEN_UP: State.OVER},
    State.REOPENING: {Trigger.OPENED: State.OPEN, Trigger.ENDED: State.LOST},
    State.OVER: {Trigger.GIVEN_UP: State.OVER},
}


@dataclass(slots=True)
class _SinceToken(Generic[V]):
    """Keeps what has happened to an answer since its last token."""

    lost: int = 0
    """Sessions lost, but for handovers and for links that broke alone."""

    waits: int = 0
    has_repeated: bool = False
    handed_over: set[V | None] = field(default_factory=set)
    """No further handover by these verifiers is free."""


class _Candidates(Generic[V]):
    """The verifiers that may take an answer's next session."""

    def __init__(
        self, verifiers: KnownVerifiers[V], identity: str, prompt: PromptBlocks | None
    ) -> None:
        self._verifiers = verifiers
        self._identity = identity
        self._prompt = prompt
        self.tried: set[V | None] = set()
        """These verifiers lost the session or refused it; after a wait they may take it."""

        self.excluded: set[V | None] = set()
        """These verifiers will never take the session, as with a wrong key or another model, or
        let it wait for too long."""

    def best(self, without: Set[V | None] = frozenset()) -> V | None:
        """Return the one that should take it, ready or not."""
        return self._verifiers.choose(self._identity, without | self.excluded, self._prompt)

    def ready(self, without: Set[V | None]) -> V | None:
        best = self.best(without)
        return best if best and best.is_ready else None


class _Waits:
    """The waits of an answer whose session was lost; they end at its deadline."""

    def __init__(self, deadline_s: float, chance: Random) -> None:
        self._deadline_s = deadline_s
        self._chance = chance
        self.late_at = inf
        """The answer is given up then, once a session was lost."""

        self._pause_s = 0.0  # before another verifier is chosen

    def lost(self, now: float) -> None:
        """Note that a session was lost."""
        self.late_at = now + self._deadline_s
        self._pause_s = self._chance.uniform(0.0, JITTER_S)

    def pause(self) -> Wait | None:
        """Return the wait of a lost session before another verifier is chosen, once."""
        pause_s, self._pause_s = self._pause_s, 0.0
        return Wait(pause_s, probes_all=False) if pause_s > 0.0 else None

    def search(self, waits: int, longer_s: float, now: float) -> Wait:
        """Return how long to wait for a ready verifier. waits: the number of such waits since
        the last token. longer_s: a verifier asks for so much more."""
        mean_s = min(MAX_WAIT_S, MIN_WAIT_S * 2**waits)
        wait_s = mean_s * self._chance.uniform(0.5, 1.5)
        return Wait(min(wait_s + longer_s, self.late_at - now))


class FailoverPolicy(Generic[V]):
    """identity: that of the answer's texts. deadline_s: an answer whose session was lost waits
    this long for a verifier. chance: spreads the waits of many answers. prompt: None if all
    verifiers have as much of it."""

    def __init__(
        self,
        verifiers: KnownVerifiers[V],
        identity: str,
        deadline_s: float,
        chance: Random,
        prompt: PromptBlocks | None = None,
    ) -> None:
        self._candidates = _Candidates(verifiers, identity, prompt)
        self._waits = _Waits(deadline_s, chance)
        self.state = State.NEW
        self._verifier: V | None = None  # the last one that was chosen
        self._error: ApiError = Unavailable("no verifier can go on with this answer")
        """The error that ended the last session, or that ends the answer."""

        self._since_token = _SinceToken[V]()
        self._run = ""  # the run of the verifier that opened the last session
        self._is_suspect = False  # the link or this verifier's process was lost
        self._has_probed = False

    def begin(self) -> V:
        """Return where to open the first session. Raises Unavailable if no verifier may."""
        return self._chosen(self._candidates.best())

    def choose(self, now: float) -> V | Wait:
        """Return where to open the next session, or how long to wait before calling again.
        Raises ApiError if the answer is given up."""
        choice: V | Wait | None = None
        candidates = self._candidates
        if now < self._waits.late_at:
            match self.state:
                case State.REFUSED:
                    choice = candidates.ready(candidates.tried) or self._probe()
                case State.LOST:
                    choice = self._waits.pause() or candidates.ready(candidates.tried)
                    choice = choice or self._wait(now)
                case State.REPEATING | State.RESUMING:
                    choice = self._verifier
        return choice if isinstance(choice, Wait) else self._chosen(choice)

    def _chosen(self, verifier: V | None) -> V:
        if verifier is None:
            self._move(Trigger.GIVEN_UP)
            raise self._error
        self._move(Trigger.CHOSEN)
        self._verifier = verifier
        return verifier

    def _move(self, trigger: Trigger) -> None:
        """Go to the next state. Raises LocalProtocolError if there is none from this one."""
        following = TRANSITIONS[self.state].get(trigger)
        if following is None:
            raise LocalProtocolError(f"{trigger.name} in state {self.state.name}")
        self.state = following

    def _probe(self) -> Wait | None:
        """Let all verifiers be asked, once, if one drains: another may have restarted."""
        if self._has_probed or not isinstance(self._error, Draining):
            return None
        self._has_probed = True
        return Wait(0.0)

    def _wait(self, now: float) -> Wait | None:
        """Return how long to wait for a ready verifier; None if no verifier may go on."""
        if self._candidates.best() is None:
            return None
        error = self._error
        longer_s = error.retry_after_s or 0.0 if isinstance(error, Overloaded) else 0.0
        wait = self._waits.search(self._since_token.waits, longer_s, now)
        self._since_token.waits += 1
        self._candidates.tried.clear()
        return wait

    def opened(self, session: str) -> bool:
        """Note that the verifier has taken the session. Return True if its process had the
        previous one too. A LinkDown then means that only the link was lost."""
        self._move(Trigger.OPENED)
        run, self._candidates.tried = session[:RUN_CHARACTERS], set()
        is_same_process, self._run = run == self._run, run
        if is_same_process and self._is_suspect:
            self._since_token.lost -= 1
        self._is_suspect = False
        return is_same_process

    def ended(self, error: ApiError, now: float, *, progressed: bool) -> None:
        """Note that the verifier refused the session, or that it ended before its Finish.
        progressed: True if it brought a token."""
        was_open = self.state is State.OPEN
        self._move(Trigger.ENDED)
        self._error = error
        is_final = self._lost(error, now, progressed) if was_open else self._refused(error)
        if is_final:
            self._move(Trigger.GIVEN_UP)
        elif not self._since_token.has_repeated and self._may_repeat(error):
            self._since_token.has_repeated = True
            self._move(Trigger.REPEATED)

    def _may_repeat(self, error: ApiError) -> bool:
        """Return True if the same verifier should be tried at once. A refused connection means
        that its process is gone; a silent one may stay away for long."""
        if not isinstance(error, LinkDown) or error.how == "refused":
            return False
        return error.how == "broken" or not self.has_alternative

    def _lost(self, error: ApiError, now: float, progressed: bool) -> bool:
        """Note the loss of a session. Return True if no other one should follow."""
        self._waits.lost(now)
        self._candidates.tried = {self._verifier}
        if error.error_code == IDLE:
            self._candidates.excluded.add(self._verifier)
        if progressed:
            self._since_token = _SinceToken[V]()
        since = self._since_token
        if error.error_code != HANDOVER_FAULT or self._verifier in since.handed_over:
            since.lost += 1
        else:
            since.handed_over.add(self._verifier)
        self._is_suspect = isinstance(error, LinkDown)
        if not isinstance(error, Unavailable | Overloaded):
            return True
        if since.lost < MAX_LOST:
            return False
        reason = f"{MAX_LOST} verifiers were lost at one token of the answer"
        self._error = Unavailable(f"{reason}; the last: {error}", code=error.error_code)
        return True

    def _refused(self, error: ApiError) -> bool:
        """Note that a verifier does not take the session. Return True if no other one would:
        the request itself is wrong."""
        passes = isinstance(error, Unavailable | Overloaded)
        if passes and error.error_code != "identity_mismatch":
            self._candidates.tried.add(self._verifier)
        else:
            self._candidates.excluded.add(self._verifier)
        return self.state is State.REFUSED and isinstance(error, InvalidRequest | TooLarge)

    @property
    def has_alternative(self) -> bool:
        """True if another verifier could take over now."""
        return self._candidates.ready({self._verifier}) is not None

    def timeout_s(self, open_bytes: int, now: float, *, constrained: bool = False) -> float:
        """Return how long an Open of this size may wait for the first byte of its stream; after
        a lost session, at most until the deadline. constrained: True if the request has a
        grammar, which a verifier tries first."""
        within_s = RESPONSE_TIMEOUT_S
        if self.has_alternative:
            within_s = min(within_s, OPEN_TIMEOUT_S + open_bytes / MIN_BYTES_PER_S)
        if constrained:
            within_s += ANSWER_TIMEOUT_S
        return min(within_s, self._waits.late_at - now)
