"""Observes one answer for a client that watches it: the origins of its tokens, and its events.

The machine of such an answer reports its inputs and decisions to the observer, which also looks
at the chain regularly. An answer that nobody watches has no observer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal

from edge_agent.link.verifiers import AnswerSessions
from gateway.watching import TARGET, ChainEvent, Event, LinkUse, Origin, PassEvent
from speculation.draft_machine import DraftMachine, Observer, Outcome
from speculation.draft_token import STEPS, DraftToken
from speculation.learning import running_mean
from speculation.messages import Commit, Down, Draft
from speculation.model_facts import TokenId
from speculation.wire import encode

REPORT_INTERVAL_S: Final = 0.05
"""The observer looks at the chain at this interval: a client draws at most 20 a second."""

MAX_LINK_INTERVAL_S: Final = 10.0
"""An event of the link follows after at most this time, so that no proxy considers the stream
dead."""

MAX_TOKENS: Final = 256
"""A client gets the text of at most this many tokens of a chain."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A Draft that is under way, or at the verifier."""

    epoch: int
    end: int  # the position after its last token
    at_s: float


@dataclass(frozen=True, slots=True)
class _ChainBefore:
    """Holds the chain as it was before the latest message."""

    epoch: int = 0
    start: int = 0
    tokens: Sequence[DraftToken] = ()


class _LinkReports:
    """Reports the use of the link when it has changed, and regularly. rtt_s: returns the
    current round-trip time in seconds."""

    def __init__(self, rtt_s: Callable[[], float], sessions: AnswerSessions) -> None:
        self._rtt_s = rtt_s
        self._sessions = sessions
        self.bytes_up = self.bytes_down = 0  # of frames
        self._last: LinkUse | None = None
        self._last_at_s = 0.0

    def restart(self) -> None:
        """Report the link at the next chance: a session is opened."""
        self._last = None

    def take(self, now: float) -> Iterator[LinkUse]:
        """Yield the report that is due, if one is."""
        last, quiet_s = self._last, now - self._last_at_s
        if last is None or quiet_s >= 0.5:
            rtt_ms, used = _ms(self._rtt_s()), (self.bytes_up, self.bytes_down)
            verifier, reopened = self._sessions.verifier.label, self._sessions.reopened
            link = LinkUse(rtt_ms, *used, verifier, reopened)
            if link != last or quiet_s >= MAX_LINK_INTERVAL_S:
                self._last, self._last_at_s = link, now
                yield link


class AnswerObserver(Observer):
    """Follows `machine`, which calls it, and returns what is new to a client. clock: monotonic,
    in seconds."""

    def __init__(
        self, machine: DraftMachine, sessions: AnswerSessions, clock: Callable[[], float]
    ) -> None:
        machine.observer = self
        self._machine = machine
        self._clock = clock
        self._link = _LinkReports(lambda: machine.latencies.rtt_s, sessions)
        self._before = _ChainBefore()
        self._sent: list[Sent] = []
        self._row_s: dict[int, float] = {}  # mean time of a pass, by its rows
        self._reads_prompt = True  # True if the next pass reads the prompt
        self._passed_at_s: float | None = None
        self._events: list[Event] = []
        self._last_chain: tuple[int, int, int] | None = None  # the chain that was reported last

    def opened(self) -> None:
        """Note that a session is opened; its first pass also reads the prompt."""
        self._reads_prompt = True
        self._link.restart()

    def decided(self, outcome: Outcome, now: float) -> None:
        """Note the Drafts, to find out later which pass had them."""
        for message in outcome.send:
            self._link.bytes_up += len(encode(message))
            if isinstance(message, Draft):
                end = message.start + len(message.tokens)
                self._sent.append(Sent(message.epoch, end, now))

    def before(self, message: Down) -> None:
        """Note the chain, which the machine is about to confirm or to break."""
        self._link.bytes_down += len(encode(message))
        session = self._machine.session
        start = len(session.committed)
        self._before = _ChainBefore(session.epoch, start, tuple(session.chain))

    def after(self, outcome: Outcome) -> None:
        """Note the effect of the message on the chain."""
        now = self._clock()
        self.decided(outcome, now)
        commit = outcome.commit
        if commit is not None:
            self._events.append(self._pass(commit, now))
        if self._machine.session.epoch != self._before.epoch:
            self._break(commit.tokens if commit else ())
        if commit is not None:
            known = len(self._machine.session.committed)
            self._sent = [
                s for s in self._sent if s.epoch >= self._before.epoch and s.end > known
            ]

    def origins(self, commit: Commit) -> tuple[Origin, ...]:
        """Return the origins of the tokens in the Commit that the machine took in last. The
        verifier accepts tokens of the chain from its beginning on, then its own draft tokens,
        and the target generates the others."""
        drafted: list[Origin] = [each.origin for each in self._before.tokens[: commit.accepted]]
        drafted += ["verifier"] * commit.verifier_accepted
        return (*drafted, *(TARGET for _ in commit.tokens[len(drafted) :]))

    def take(self) -> tuple[Event, ...]:
        """Return the events since the last call."""
        events, self._events = tuple(self._events), []
        return events

    def take_all(self, now: float) -> tuple[Event, ...]:
        """Return the events and changes since the last call."""
        session, events = self._machine.session, list(self.take())
        here = (session.epoch, len(session.committed), len(session.chain))
        if here != self._last_chain:
            self._last_chain = here
            events.append(_chain(session.epoch, here[1], session.chain, broken=False))
        return (*events, *self._link.take(now))

    def _pass(self, commit: Commit, now: float) -> PassEvent:
        drafts = max(commit.drafts, self._judged(commit, now))
        if not self._reads_prompt and commit.pass_s > 0.0:
            alone_s = commit.pass_s / self._machine.slowed
            self._row_s[drafts] = running_mean(self._row_s.get(drafts), alone_s)
        self._reads_prompt = False
        gap_s = None if self._passed_at_s is None else now - self._passed_at_s
        self._passed_at_s = now
        return PassEvent(
            position=commit.start,
            rows=drafts + 1,
            accepted=commit.drafts,
            committed=len(commit.tokens),
            beyond=_beyond(commit, drafts),
            pass_ms=_ms(commit.pass_s),
            waited_ms=_ms(commit.queue_s),
            gap_ms=None if gap_s is None else _ms(gap_s),
            cloud_row_ms=_ms(min(self._row_s.values())) if self._row_s else None,
        )

    def _judged(self, commit: Commit, now: float) -> int:
        """Return how many draft tokens had arrived when the pass began, and may be judged."""
        until_s = now - self._machine.latencies.rtt_s - commit.pass_s
        ends = (
            s.end for s in self._sent if s.epoch == self._before.epoch and s.at_s <= until_s
        )
        arrived = max(ends, default=commit.start) - commit.start
        return max(0, min(arrived, self._machine.limits.max_verify))

    def _break(self, tokens: Sequence[TokenId]) -> None:
        before = self._before
        pairs = zip(before.tokens, tokens, strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0].token == pair[1], pairs))
        wrong, at = before.tokens[right:], before.start + right
        if wrong:
            self._events.append(_chain(before.epoch, at, wrong, broken=True))


def _chain(epoch: int, at: int, chain: Sequence[DraftToken], *, broken: bool) -> ChainEvent:
    ids = tuple(drafted.token for drafted in chain[:MAX_TOKENS])
    drafted = sum(each.origin in STEPS for each in chain)
    return ChainEvent(epoch, at, len(chain), broken, ids, drafted=drafted)


def _beyond(commit: Commit, drafts: int) -> Literal["recovered", "bonus", "fill"] | None:
    if commit.drafts == len(commit.tokens):
        return None
    if drafts > commit.drafts:
        return "recovered"
    return "bonus" if drafts else "fill"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
