"""The edge's machine of one answer takes in events and returns what to do next.

A driver owns the clock, the draft model and the link. It calls `next` whenever something has
changed, sends what the Outcome holds, and makes the step that the Outcome asks for; `drafted`
takes the step's result, `received` each message of the verifier. The machine never waits for a
verdict.

A session may be lost with its verifier. `lost` then returns whether the answer is complete
nevertheless, and `opening` asks another verifier for the rest.

If a step ends after its chain has broken, its draft tokens are dropped, but its time counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from speculation.draft_policy import DraftPolicy, should_pause
from speculation.draft_token import STEPS, DraftToken, mark_ahead
from speculation.drafting import DraftingSession, check
from speculation.judge import EdgeHalf
from speculation.learning import running_mean
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Down,
    Draft,
    Finish,
    Open,
    Opened,
    Pushed,
    Recovered,
    Reject,
    Totals,
)
from speculation.model_facts import MAX_VOCABULARY, Limits, TokenId
from speculation.proposer import Latencies, Proposer
from speculation.speedup import AnswerSpeedups, SpeedupEstimates


@dataclass(frozen=True, slots=True)
class DraftStep:
    """The draft model is asked for this step."""

    context: list[TokenId]
    """The step follows these output tokens: the committed ones and the chain."""

    ahead: list[TokenId]  # tokens that the step also reads behind its context
    epoch: int
    asked_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A driver must do these things, in the order of the fields."""

    send: tuple[Pushed, ...] = ()
    step: DraftStep | None = None
    commit: Commit | None = None  # tokens that were not known before, to be shown
    finish: Finish | None = None


@dataclass(slots=True)
class DraftCounts:
    """Counts one answer's draft tokens by source, its stale steps and its cached prompt
    tokens."""

    drafted: int = 0
    looked_up: int = 0  # proposed without a step: by lookup, or forced by a grammar
    stale_steps: int = 0  # steps whose chain had broken when they ended
    cached_tokens: int = 0  # tokens of the prompt that the target did not have to read


class Tally:
    """Counts an answer's passes and draft tokens where some of its sessions were lost.

    A verifier sends its own counts with its Finish. A lost session has no Finish, so its
    Commits are counted instead: each stands for one pass and for the draft tokens that it
    accepted.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        """The sum over the Commits of all sessions so far."""

        self._before = Totals()  # the part that lost sessions have counted

    def add(self, commit: Commit) -> None:
        if commit.tokens:
            accepted = commit.drafts
            filled = int(accepted == 0)
            self.totals = self.totals.plus(
                Totals(1, accepted, accepted, filled, commit.verifier_accepted)
            )

    def lost(self) -> None:
        """Note that the session is lost: another verifier counts from here on."""
        self._before = self.totals

    def finished(self, finish: Finish) -> Finish:
        """Return the last session's Finish with the totals of all sessions."""
        return Finish(finish.reason, self._before.plus(finish.totals))


class Observer:
    """A machine reports its inputs and decisions to this interface; this class ignores them."""

    def opened(self) -> None:
        """A session is about to be opened."""

    def decided(self, outcome: Outcome, now: float) -> None:
        """The machine has decided what to send, without a message."""

    def before(self, message: Down) -> None:
        """The machine is about to take in a message."""

    def after(self, outcome: Outcome) -> None:
        """The machine has taken in the message."""


class _ObservedLatencies:
    """Learns how long a pass takes, and how long the draft model takes for a token: from steps
    in which it did not rewind or read a prompt. rtt_s: returns the link's round trip."""

    def __init__(self, rtt_s: Callable[[], float]) -> None:
        self.rtt_s = rtt_s
        self.pass_s = 0.0
        self.draft_s = 0.0
        self._unfinished_s = 0.0  # time of steps whose draft token a later step completes
        self._read_epoch, self._read_end = -1, 0  # the chain that the draft model has read

    @property
    def now(self) -> Latencies:
        return Latencies(self.rtt_s(), self.pass_s, self.draft_s)

    def observe_pass(self, pass_s: float) -> None:
        self.pass_s = running_mean(self.pass_s or None, pass_s)

    def observe_step(self, step: DraftStep, took_s: float, tokens: int) -> int:
        """Learn from a step that gave so many tokens. Return how many tokens it read beside the
        last one; 0 if its time tells nothing of that."""
        goes_on = step.epoch == self._read_epoch
        more = len(step.ahead) + max(0, len(step.context) - self._read_end - 1)
        self._read_epoch, self._read_end = step.epoch, len(step.context) + tokens - 1
        if not goes_on:
            self._unfinished_s = 0.0
            return 0
        if more:
            self.draft_s = min(self.draft_s, took_s)  # one token takes no longer than several
            return more
        self._unfinished_s += took_s
        if tokens:
            self.draft_s = running_mean(self.draft_s or None, self._unfinished_s / tokens)
            self._unfinished_s = 0.0
        return 0


class DraftMachine:
    """rtt_s: returns the link's current round-trip time in seconds. drafts: True if there is a
    draft model. speedups: returns what draft tokens earn at the session's verifier; None drafts
    whatever they earn. vocabulary_size: token ids below it are tokens of the target."""

    def __init__(
        self,
        request: Open,
        policy: DraftPolicy,
        limits: Limits,
        judge: EdgeHalf,
        *,
        rtt_s: Callable[[], float],
        drafts: bool = False,
        lookup: Proposer | None = None,
        speedups: Callable[[], SpeedupEstimates] | None = None,
        vocabulary_size: int = MAX_VOCABULARY,
    ) -> None:
        self.session = DraftingSession(
            max_tokens=request.max_tokens,
            stop_tokens=request.stop_tokens,
        )
        self.counts = DraftCounts()
        self._request = request
        self._vocabulary_size = vocabulary_size
        self._policy = policy
        self.limits = limits
        self._judge = judge
        self._drafts = drafts
        self._lookup = lookup
        self._observed = _ObservedLatencies(rtt_s)
        self._opened_at = 0
        """The session began at this position; the pass there also read the prompt."""

        looks_up = lookup is not None
        self._speedups = AnswerSpeedups(speedups, drafts=drafts, looks_up=looks_up)
        self.tally = Tally()
        self.observer = Observer()

    @property
    def latencies(self) -> Latencies:
        return self._observed.now

    def next(self, now: float, *, busy: bool) -> Outcome:
        """Return what to send, and the step to make. busy: True while a step is being made."""
        send, step, latencies = list[Pushed](), None, self.latencies
        while not (busy or step):
            self._look_up(latencies)
            is_due = self._is_step_due(latencies)
            if draft := self._flush(drafting=is_due):
                send.append(draft)  # sending these may make room for more
            if is_due:
                step = self._step(now, latencies)
            elif not draft:
                break
        outcome = Outcome(tuple(send), step)
        self.observer.decided(outcome, now)
        return outcome

    def _look_up(self, latencies: Latencies) -> None:
        """Extend the chain with tokens found in earlier text, while that pays."""
        if self._lookup is None:
            return
        session = self.session
        costs = latencies if self._works else replace(latencies, draft_s=inf)
        while self._may_look_up(latencies):
            self._lookup.follow(session.committed, session.chain)
            if (draft := self._lookup.propose(costs)) is None:
                return
            session.extend(draft)
            self.counts.looked_up += 1

    def _may_look_up(self, latencies: Latencies) -> bool:
        session, speedup = self.session, self._speedups.lookup
        if not session.may_extend or not (speedup is None or speedup.drafts):
            return False
        return self._policy.may_look_up(session, latencies, self.limits)

    def _is_step_due(self, latencies: Latencies) -> bool:
        session = self.session
        if not session.may_extend or not self._works:
            return False
        return self._policy.may_draft(session, latencies, self.limits)

    @property
    def slowed(self) -> float:
        """A pass takes so many times longer because the edge drafts, as far as is known."""
        speedup = self._speedups.draft
        return (
            max(1.0, speedup.estimate.cost) if speedup is not None and speedup.drafts else 1.0
        )

    @property
    def _works(self) -> bool:
        """True if the draft model works for this answer, but for pauses."""
        speedup = self._speedups.draft
        return self._drafts and (speedup is None or speedup.drafts)

    def _step(self, now: float, latencies: Latencies) -> DraftStep:
        session, ahead = self.session, list[TokenId]()
        if self._lookup is not None:
            self._lookup.follow(session.committed, session.chain)
            ahead = self._lookup.ahead(latencies)
        return DraftStep(session.context, ahead, session.epoch, now)

    def _flush(self, *, drafting: bool) -> Draft | None:
        """Return what should be sent now, if anything."""
        policy, session = self._policy, self.session
        if self._judge.sends_at_once or policy.should_send(session, drafting=drafting):
            return session.flush(pauses=not drafting)
        return None

    def drafted(self, step: DraftStep, tokens: Sequence[DraftToken], now: float) -> None:
        """Take a step's draft tokens: one, and one more for each token of `ahead` that agrees.
        A draft model of another vocabulary returns those that it has completed, possibly none.
        The first extends the chain as the step's own; the others, while the policy allows
        lookups."""
        end = len(step.context)
        took_s, observed = now - step.asked_at, self._observed
        more = observed.observe_step(step, took_s, len(tokens))
        if more and self._lookup is not None:
            self._lookup.observe_reading(more, took_s, observed.draft_s)
        if (step.epoch, end) != (self.session.epoch, self.session.end):
            self.counts.stale_steps += 1
            return
        for index, drafted in enumerate(mark_ahead(tokens, step.ahead)):
            if index and not self._may_look_up(self.latencies):
                return
            self.session.extend(drafted)
            self.counts.drafted += 1

    def start_drafting(self) -> None:
        """Ask for steps from now on: the draft model is there by now."""
        self._drafts = True
        self._speedups.start_drafting()

    def stop_drafting(self) -> None:
        """Ask for no more steps: the draft model failed."""
        self._drafts = False
        self._speedups.stop_drafting()

    def received(self, message: Down) -> Outcome:
        """Take in a message. Raise RemoteProtocolError for what no correct verifier sends."""
        self.observer.before(message)
        outcome = self._received(message)
        self.observer.after(outcome)
        return outcome

    def _received(self, message: Down) -> Outcome:
        check(message, self._request, self._vocabulary_size, self.session.committed)
        match message:
            case Opened(limits=limits):
                self.limits = limits
            case CachedPromptTokens(tokens=tokens) if not self.session.committed:
                self.counts.cached_tokens = tokens  # only the first token's session counts
            case Commit():
                return Outcome(commit=self._commit(message))
            case Reject():
                return self._rejected(message)
            case Finish():
                return Outcome(finish=self.tally.finished(message))
        return Outcome()

    def _commit(self, message: Commit) -> Commit | None:
        """Take in a Commit and return the part of it that was not known before."""
        known = len(message.tokens) - len(self.session.receive(message))
        if message.start > self._opened_at and message.pass_s > 0.0:
            self._observed.observe_pass(message.pass_s)
            self._weigh(message)
        fresh = message.after(known)
        self.tally.add(fresh)
        return fresh if fresh.tokens else None

    def _weigh(self, commit: Commit) -> None:
        """Learn what draft tokens earn."""
        works, chain = self._works, self.session.chain
        on_the_way = 2 * self._observed.rtt_s() / self._observed.pass_s
        if (speedup := self._speedups.lookup) and not works:
            speedup.committed(commit, on_the_way, clear=speedup.drafts or not chain)
        if speedup := self._speedups.draft:
            drawn = not works and any(each.origin in STEPS for each in chain)
            clear = not (should_pause(self.session) if works else drawn)
            speedup.committed(commit, on_the_way, clear=clear)

    def close(self) -> None:
        """Note that the answer has ended."""
        self._speedups.leave()

    def _rejected(self, reject: Reject) -> Outcome:
        """Answer a Reject. The draft tokens that it accepts are committed, and so is a
        recovered token as soon as it is drawn, whether or not the verifier has received it."""
        session = self.session
        if reject.position < len(session.committed):
            return Outcome()  # already answered
        accepted = session.before(reject)
        answer = self._judge.rejected(reject, session.chain[len(accepted)])
        recovered = (answer.token,) if isinstance(answer, Recovered) else ()
        tokens = (*(drafted.token for drafted in accepted), *recovered)
        commit = Commit(reject.epoch, len(session.committed), tokens, len(accepted))
        return Outcome(send=(answer,) if answer else (), commit=self._commit(commit))

    def lost(self) -> Finish | None:
        """Note that the session is lost; return a Finish if the text is complete."""
        self.tally.lost()
        finished = self.session.finished
        return Finish(finished, self.tally.totals) if finished else None

    def opening(self) -> Open:
        """Return the Open of a session that generates the rest of the answer. Its verifier has
        no draft tokens yet, so the whole chain will be sent."""
        self.observer.opened()
        self.session.in_flight = 0
        self._opened_at = len(self.session.committed)
        self._speedups.move()
        committed = tuple(self.session.committed)
        return replace(self._request, committed=committed, rejected=self._judge.reopened())
