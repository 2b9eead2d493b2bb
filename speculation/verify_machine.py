"""The verifier's machine decides, over all its sessions, when passes start and what they judge.

A driver owns the clock, the target and its KV cache. It names the ready sessions (their prompt
is read and no pass of theirs is running), and executes:

    offer    returns what the next pass should judge, or how long to wait before asking again;
             `wait_s` and `allot` are its two halves
    begin    starts the pass that really runs: an engine may trim an offer, or add sessions.
             A pass without draft tokens may also begin when it has run, so that the target
             can have two of a session's under way
    ran      takes the target's output and returns what each session sends to its edge

All times are in seconds on one monotonic clock. No state changes when `received` raises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from speculation.answer_cache import AnswerCache, Owner
from speculation.arrivals import Arrivals
from speculation.head import NO_DRAFT_WAIT, Head
from speculation.judge import Judgement
from speculation.latency import OutcomeCost, PassLatency
from speculation.messages import Down, Draft, Open, Pushed, TokenLogprob
from speculation.model_facts import Limits, TokenId
from speculation.ngram_drafts import AnswerCaches
from speculation.pass_policy import (
    MIN_EXPECTED_ACCEPTED,
    MIN_GAIN,
    Calibration,
    Waiting,
    accepted_after,
    allocate,
    draft_wait_s,
    head_tokens,
    left_s,
)
from speculation.verify_session import Pass, VerifyingSession

MIN_PASS_S: Final = 1e-6
"""A pass counts as at least this long, even if less remains without `extra_judging_s`."""

MAX_SHOWN: Final = 16
"""`learned_statistics` has at most this many sessions."""

MIN_DRAFT_WAIT_S: Final = 1e-6
"""Shorter waits count as zero: rounding may leave a remainder of a wait that has ended."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The work that the next pass should do."""

    start: Mapping[str, tuple[TokenId, ...]]
    """Sessions that should take part, with the draft tokens to judge of each. If empty, no pass
    should start yet."""

    wait_s: float  # when to ask again if no message arrives; inf: not before one arrives
    waiting_for_drafts: Collection[
        str
    ] = ()  # sessions that wait for draft tokens about to arrive
    heads: Mapping[str, int] = field(default_factory=dict)
    """Maps sessions of `start` that judge the target's head instead to its number of tokens."""


@dataclass(frozen=True, slots=True)
class PassPlan:
    """A pass that is running."""

    passes: Mapping[str, Pass]
    started: float


@dataclass(frozen=True, slots=True)
class PassRecord:
    """Describes a pass, so that its duration can be learned."""

    rows: int
    """Those of the whole pass, without the tokens of a prompt."""

    with_prompt: bool = False  # it also read a prompt
    with_drafts: bool = False
    """Some request of it had draft tokens, in an engine where that may take longer."""

    extra_judging_s: float = 0.0
    """How much longer judging took than with the cheapest settings, such as without a grammar.
    It is not learned as latency, or every session would get fewer rows."""

    after_s: float | None = None
    """It ended so long after the last pass; None if nothing was to be done between."""

    ahead: bool = False  # it was planned before the last one had ended


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a pass for one session."""

    judgement: Judgement
    logprobs: Sequence[TokenLogprob] | None = None
    """One for each of judgement.tokens, if the request asks for them."""


@dataclass(slots=True)
class _Observed:
    """A session and the observations of it. passed_at: when its last pass ended."""

    session: VerifyingSession
    passed_at: float
    answer_cache: AnswerCache | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)
    head: Head = field(default_factory=Head)
    calibration: Calibration = field(default_factory=Calibration)
    waits_since: int | None = None
    """The session's pass was found to pay for a wait after this many observations of latency;
    None if something has happened to the session since."""

    def waiting(self, now: float) -> Waiting:
        """Return the values that decide how long the session's pass waits for drafts."""
        session, arrivals = self.session, self.arrivals
        return Waiting(
            fill=session.request.fill,
            pending=session.pending,
            acceptance=session.chain.acceptance,
            due_s=arrivals.due_s(now),
            lag_tokens=arrivals.lag_tokens(len(session.committed), session.chain.reach),
            interval_s=arrivals.interval_s,
        )


class VerifyMachine:
    """u: uniforms in [0, 1) that no edge can predict. latency: earlier measurements."""

    def __init__(self, u: Iterator[float], latency: PassLatency | None = None) -> None:
        self.latency = latency or PassLatency()
        self.outcome = OutcomeCost()
        self._u = u
        self._sessions: dict[str, _Observed] = {}
        self._answer_caches = AnswerCaches()

    def open(
        self,
        name: str,
        request: Open,
        limits: Limits,
        *,
        vocabulary_size: int,
        now: float,
        owner: Owner | None = None,
    ) -> None:
        """Begin a session. owner: whose earlier answers it may draft from, and to whose its own
        is added; None for neither."""
        answer_cache = self._answer_caches.of(owner) if owner and request.ngram_drafts else None
        session = VerifyingSession(
            request,
            limits,
            vocabulary_size=vocabulary_size,
            u=self._u,
            answer_cache=answer_cache,
        )
        self._sessions[name] = _Observed(session, now, answer_cache)

    def learned_statistics(self) -> dict[str, object]:
        """Return what was learned, for a person to read: the seconds of a pass by its rows, and
        what waiting for an outcome adds; each session's acceptance, and the interval between
        its draft tokens in seconds."""
        sessions = [
            {
                "acceptance": each.session.chain.acceptance,
                "head": each.head.precision.right,
                "interval_s": each.arrivals.interval_s,
            }
            for each in self._sessions.values()
        ]
        return {
            "pass_s": self.latency.learned_statistics(),
            "outcome_s": self.outcome.of(self.latency.of(1)),
            "sessions": sessions[:MAX_SHOWN],
        }

    def close(self, name: str) -> None:
        """Forget a session; a running pass drops its outcome. Harmless when repeated."""
        if (observed := self._sessions.pop(name, None)) and observed.answer_cache is not None:
            observed.answer_cache.add(
                observed.session.request.prompt, observed.session.committed
            )

    def forget(self, owner: Owner) -> None:
        """Forget the answers that are kept for an owner; see AnswerCaches.forget."""
        self._answer_caches.forget(owner)

    def session(self, name: str) -> VerifyingSession:
        return self._sessions[name].session

    def received(self, name: str, message: Pushed, *, arrived: float) -> list[Down]:
        """Take in an edge's message, which reached the host at `arrived`; return the messages
        to send at once. Raise RemoteProtocolError for what no correct edge sends."""
        observed = self._sessions[name]
        chain, arrivals, observed.waits_since = observed.session.chain, observed.arrivals, None
        newest, broken = chain.newest, chain.broken
        down = observed.session.receive(message)
        if isinstance(message, Draft) and chain.newest > newest:
            arrivals.drafts_arrived(arrived, len(message.tokens))
            if message.pauses:
                arrivals.paused(message.start - message.offset)
        if chain.broken and not broken:
            arrivals.chain_broke(chain.wrong_at)
        return down

    def proposed(self, name: str, tokens: int) -> None:
        """Note how many tokens the target's head has proposed after a session's text."""
        self._sessions[name].head.tokens = tokens

    def heads_to_draft(
        self, names: Collection[str], now: float, step_s: float, most: int
    ) -> tuple[Collection[str], int]:
        """Return the sessions whose heads should draft before the next pass, and how many
        tokens: those that expect less of their edge's draft tokens and of n-grams, and do not
        wait for any. step_s: the seconds in which heads draft a token of each."""
        precisions = {}
        for name in names:
            observed = self._sessions[name]
            session, precision = observed.session, observed.head.precision
            most = min(most, session.limits.max_verify)
            own = precision.expected(min(most, session.head_room))
            if own > sum(session.gains) and self._draft_wait_s(name, now) <= 0.0:
                precisions[name] = precision.right
        if not precisions:
            return (), 0
        return precisions, head_tokens([*precisions.values()], self.latency, step_s, most)

    def wait_s(self, ready: Collection[str], now: float) -> float:
        """Return how long no pass should start: 0 for at once, inf until a message arrives."""
        wait_s = inf
        for name in ready:
            wait_s = min(wait_s, self._draft_wait_s(name, now))
            if wait_s <= 0.0:
                break
        return wait_s

    def asynchronous_sessions(
        self, under_way: Collection[str], now: float, *, others: int
    ) -> Collection[str] | None:
        """Return the sessions whose next pass, without draft tokens, should be planned before
        the outcome of the one under way is known; None if no pass should be.

        under_way: sessions that are in that pass. others: rows of the next one that belong to
        no session, and always are planned asynchronously. Else both ways are compared by the
        tokens that they are expected to commit in a second: all wait for the outcome, and the
        host's part of a pass adds to the device's; or those that expect much are left out of
        every second pass, and the others go on without draft tokens."""
        pass_s = self.latency.of(max(1, len(under_way)))
        waits, ahead, unlikely = 0.0, 0.0, set[str]()
        expected_tokens_of = {
            name: self._expected_accepted(name, now, pass_s) for name in under_way
        }
        for name, expected_tokens in expected_tokens_of.items():
            observed = self._sessions[name]
            expected = observed.calibration.factor * expected_tokens / MIN_GAIN
            waits += 1.0 + expected
            if observed.session.is_running or expected >= MIN_EXPECTED_ACCEPTED:
                ahead += (1.0 + expected) / 2
            else:
                ahead += 1.0
                unlikely.add(name)
        is_faster = ahead * (pass_s + self.outcome.of(pass_s)) > waits * pass_s
        is_asynchronous = others > 0 or (bool(unlikely) and is_faster)
        for name in expected_tokens_of.keys() - (unlikely if is_asynchronous else ()):
            self._sessions[name].calibration.expect(expected_tokens_of[name])
        return unlikely if is_asynchronous else None

    def _expected_accepted(self, name: str, now: float, pass_s: float) -> float:
        observed = self._sessions[name]
        session = observed.session
        return accepted_after(observed.waiting(now), session.gains, session.judging, pass_s)

    def offer(
        self,
        ready: Collection[str],
        now: float,
        *,
        rows: int,
        without_drafts: Collection[str] = (),
        others: int = 0,
    ) -> Offer:
        """Return what the next pass should judge, or how long to wait; see `allot`. Nothing
        changes. The pass starts when one session need wait no longer, or if something else is
        in it."""
        if not (without_drafts or others) and (wait_s := self.wait_s(ready, now)) > 0.0:
            going = [name for name in ready if self._sessions[name].session.may_take_part]
            return Offer({}, wait_s, going)
        return self.allot(ready, rows=rows, without_drafts=without_drafts, others=others)

    def allot(
        self,
        ready: Collection[str],
        *,
        rows: int,
        without_drafts: Collection[str] = (),
        others: int = 0,
        ahead: bool = False,
    ) -> Offer:
        """Return what a pass that starts now should judge. Nothing changes.

        rows: the most that the pass may have. without_drafts: sessions that start now, whatever
        the others wait for, and take no draft token, as at the end of a prompt, and those that
        run on. others: rows that are in the pass anyway and belong to no session. ahead: True
        if the outcome of the last pass is not known, so that sessions with draft tokens are
        left out of the next one.

        The pass takes all sessions but those that must have a draft token and lack one: a
        session left out of this pass waits for the next one, which is longer than any wait pays
        for.
        """
        going = [name for name in ready if self._sessions[name].session.may_take_part]
        start: dict[str, tuple[TokenId, ...]] = dict.fromkeys(without_drafts, ())
        sessions = [self._sessions[name].session for name in going]
        gains = [session.gains for session in sessions]
        counts = self._allocated(sessions, gains, len(start) + others, rows)
        if ahead:
            pairs = zip(gains, counts, strict=True)
            counts = [
                count * (sum(some[:count]) >= MIN_EXPECTED_ACCEPTED) for some, count in pairs
            ]
        heads: dict[str, int] = {}
        for name, session, some, count in zip(going, sessions, gains, counts, strict=True):
            start[name] = session.plan(count)
            if not (head := self._sessions[name].head).tokens:
                continue
            room = session.head_room
            if (expected := head.expected(room)) and expected >= sum(some[:count]):
                start[name], heads[name] = (), min(room, head.tokens)
        left = rows - others - sum(1 + len(draft) for draft in start.values())
        return Offer(start, 0.0, heads=_fitting(heads, left))

    def _draft_wait_s(self, name: str, now: float) -> float:
        observed = self._sessions[name]
        session = observed.session
        if not session.may_take_part:
            return inf
        if observed.head.tokens and observed.head.expected(session.head_room) >= NO_DRAFT_WAIT:
            return 0.0
        if observed.waits_since == self.latency.observed:  # waiting has only become cheaper
            seconds = left_s(observed.arrivals.due_s(now), observed.arrivals.interval_s)
        else:
            seconds = draft_wait_s(
                observed.waiting(now), self.latency, session.limits.max_verify
            )
        observed.waits_since = self.latency.observed if seconds > MIN_DRAFT_WAIT_S else None
        return seconds if seconds > MIN_DRAFT_WAIT_S else 0.0

    def _allocated(
        self,
        sessions: Sequence[VerifyingSession],
        gains: Sequence[Sequence[float]],
        others: int,
        rows: int,
    ) -> list[int]:
        """Return how many draft tokens of each session to judge. others: rows that no draft
        token follows. `plan` may add one draft token to a session, because fill `never` needs
        one, so the allocation leaves one row for each session free."""
        return allocate(
            gains,
            self.latency,
            rows=rows - len(sessions),
            others=others,
            judge_all=all(session.request.fill == "never" for session in sessions),
        )

    def begin(
        self, taken: Mapping[str, int], now: float, heads: Mapping[str, int] | None = None
    ) -> PassPlan:
        """Begin the pass that really runs, with this many offered draft tokens of each session
        or tokens of its head. `ran` must follow for the sessions still open then."""
        passes = {}
        for name, count in taken.items():
            observed, head = self._sessions[name], (heads or {}).get(name, 0)
            session, observed.head.tokens = observed.session, 0
            passes[name] = session.begin(count, head=head)
        return PassPlan(passes, now)

    def ran(
        self,
        plan: PassPlan,
        verdicts: Mapping[str, Verdict],
        now: float,
        record: PassRecord | None,
    ) -> dict[str, list[Down]]:
        """Return what each session sends now. Sessions that were closed meanwhile are left out.
        record: None if the latency of the pass says nothing."""
        pass_s = now - plan.started
        if record is not None:
            self._learn(plan, record, pass_s)
        down = {}
        for name, verdict in verdicts.items():
            if not (observed := self._sessions.get(name)):
                continue
            if head := plan.passes[name].head:
                observed.head.judged(head, verdict.judgement.accepted)
            observed.calibration.passed(verdict.judgement.accepted)
            down[name] = observed.session.resolve(
                verdict.judgement,
                queue_s=max(0.0, plan.started - observed.passed_at),
                pass_s=pass_s,
                logprobs=verdict.logprobs,
            )
            observed.passed_at, observed.waits_since = now, None
            chain = observed.session.chain
            wrong_at = chain.wrong_at if chain.broken else None
            observed.arrivals.committed(len(observed.session.committed), now, wrong_at)
        return down

    def _learn(self, plan: PassPlan, record: PassRecord, pass_s: float) -> None:
        """Learn from the duration of a pass."""
        rows, latency = record.rows, self.latency
        if record.after_s is not None and not record.with_prompt:
            drafts = sum(len(each.draft) + each.head for each in plan.passes.values())
            others_s = latency.of(rows - drafts)
            self.outcome.observe(record.after_s, others_s, ahead=record.ahead)
        if pass_s > 0.0:  # else the clock is too coarse
            observe = latency.observe_with_prompt if record.with_prompt else latency.observe
            seconds = max(MIN_PASS_S, pass_s - record.extra_judging_s)
            observe(rows, seconds, with_drafts=record.with_drafts)


def _fitting(heads: Mapping[str, int], rows: int) -> dict[str, int]:
    """Return the head tokens that fit into `rows` rows of a pass, the first heads first."""
    fitting: dict[str, int] = {}
    for name, tokens in heads.items():
        if (taken := min(tokens, rows)) > 0:
            fitting[name], rows = taken, rows - taken
    return fitting
