"""Whatever befalls verifiers and sessions, an answer's course keeps its rules, and ends."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link import failover_policy
from edge_agent.link.errors import LinkDown
from edge_agent.link.failover_policy import FailoverPolicy, Wait
from edge_agent.link.known_verifiers import Event, KnownModel, KnownVerifier, KnownVerifiers
from gateway import errors
from gateway.errors import ApiError, Draining, Overloaded, Unavailable

MISMATCH = "identity_mismatch"
CODES = (None, failover_policy.IDLE, failover_policy.HANDOVER_FAULT, MISMATCH)
WRONG = (errors.InvalidRequest, errors.TooLarge)
"""No verifier takes a request with these errors."""

ERRORS = [
    *(LinkDown("no answer", how) for how in ("refused", "broken", "silent")),
    *(Unavailable("ended", code=code) for code in CODES),
    *(Overloaded("full", retry_after_s=seconds) for seconds in (1, 7)),
    *(kind("no") for kind in (Draining, errors.EngineFault, errors.NotFound, *WRONG)),
]
MAX_STEPS = 2000


class AnyPolicy:
    """The course of one answer, and what its rules say of it. phase: `choosing`, `opening`,
    `open` or `over`. late_at: infinite until a session was lost."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.errors = chance.choices(ERRORS, k=chance.choice([1, 1, 2, 8]))
        self.verifiers = [KnownVerifier(f"{number}") for number in range(chance.randint(1, 4))]
        self.deadline_s, self.now, self.late_at = chance.choice([1.0, 30.0]), 0.0, inf
        self.failover_policy = FailoverPolicy(
            KnownVerifiers(self.verifiers), "i", self.deadline_s, chance
        )
        self.phase = "choosing"
        self.verifier: KnownVerifier | None = None  # the last session was to be opened there
        self.error: ApiError | None = None  # that ended the last session
        self.tried, self.excluded, self.handed_over = set(), set(), set()
        self.lost = self.repeats = 0  # since the last token
        self.run, self.link_lost, self.is_final = "", False, False
        self.has_probed = self.has_waited = self.has_paused = False

    def happens(self) -> None:
        """Let anything happen to a verifier or a session."""
        chance, verifier = self.chance, self.chance.choice(self.verifiers)
        match chance.randrange(10):
            case 0 | 1 | 2 | 3:
                verifier.note(chance.choice([Event.IS_READY, Event.IS_READY, *Event]))
            case 4:
                identity, compatible = chance.choice(["i", "i", "other"]), chance.random() < 0.8
                verifier.model = KnownModel("m", identity, {identity}, is_compatible=compatible)
            case 5:
                self.now += chance.choice([0.01, 0.3, 5.0])
            case _:
                self.goes_on(chance.choice(self.errors), opens=chance.random() < 0.7)

    def goes_on(self, error: ApiError, *, opens: bool) -> None:
        if self.phase == "choosing":
            self.choose()
        elif self.phase == "open":
            self.ended(error, progressed=self.chance.random() < 0.2)
        elif opens:
            self.opened(self.chance.choice([0, 0, 1]))
        else:
            self.refused(error)

    def choose(self) -> None:
        serving = [v for v in self.verifiers if v.may_serve("i") and v not in self.excluded]
        finds_one = any(v.is_ready and v not in self.tried for v in serving)
        is_over = (
            self.is_final or self.lost >= failover_policy.MAX_LOST or self.now >= self.late_at
        )
        has_begun = self.late_at < inf
        step: KnownVerifier | Wait | ApiError
        try:
            step = (
                self.failover_policy.choose(self.now)
                if self.error
                else self.failover_policy.begin()
            )
        except ApiError as error:
            step = error
        if isinstance(step, ApiError):
            self.phase = "over"
            assert is_over or not (serving if has_begun else finds_one)
            if step is not self.error:
                assert isinstance(step, Unavailable)
                assert self.lost >= failover_policy.MAX_LOST or self.error is None
            return
        assert not is_over
        if getattr(self.error, "how", "") == "broken" and not self.repeats:
            assert step is self.verifier
        if not isinstance(step, Wait):
            self.opens(step)
        elif not step.probes_all:
            assert has_begun
            assert 0.0 < step.seconds <= failover_policy.JITTER_S
            assert not self.has_paused
            self.has_paused = True
        elif has_begun:
            assert serving
            assert not finds_one
            said_s = self.error.retry_after_s if isinstance(self.error, Overloaded) else 0
            assert step.seconds <= min(
                1.5 * failover_policy.MAX_WAIT_S + said_s, self.late_at - self.now
            )
            assert step.seconds >= min(
                0.5 * failover_policy.MIN_WAIT_S + said_s, self.late_at - self.now
            )
            self.tried.clear()
            self.has_waited = True
        else:
            assert step.seconds == 0.0
            assert isinstance(self.error, Draining)
            assert not self.has_probed
            self.has_probed = True
        self.now += step.seconds if isinstance(step, Wait) else 0.0

    def opens(self, verifier: KnownVerifier) -> None:
        if verifier is self.verifier and not self.has_waited:
            self.repeats += 1
            assert self.repeats == 1
            assert isinstance(self.error, LinkDown)
        else:
            assert verifier.may_serve("i")
            assert verifier not in self.tried
            assert verifier.is_ready or self.error is None
        assert verifier not in self.excluded
        for constrained in (False, True):
            within_s = self.failover_policy.timeout_s(
                1 << 20, self.now, constrained=constrained
            )
            assert 0.0 < within_s <= self.late_at - self.now
        self.phase, self.verifier, self.has_waited = "opening", verifier, False

    def opened(self, run: int) -> None:
        session = f"{self.verifier.label}{run:07d}-abc"
        is_same = session[:8] == self.run

        assert self.failover_policy.opened(session) == is_same

        self.lost -= is_same and self.link_lost
        self.phase, self.run, self.link_lost = "open", session[:8], False
        self.tried.clear()

    def refused(self, error: ApiError) -> None:
        self.failover_policy.ended(error, self.now, progressed=False)

        self.phase, self.error = "choosing", error
        passes = isinstance(error, Unavailable | Overloaded) and error.error_code != MISMATCH
        (self.tried if passes else self.excluded).add(self.verifier)
        self.is_final = self.late_at == inf and isinstance(error, WRONG)

    def ended(self, error: ApiError, progressed: bool) -> None:
        self.failover_policy.ended(error, self.now, progressed=progressed)

        self.phase, self.error, self.late_at = "choosing", error, self.now + self.deadline_s
        self.tried, self.has_paused = {self.verifier}, False
        if progressed:
            self.lost = self.repeats = 0
            self.handed_over.clear()
        hands_over = error.error_code == failover_policy.HANDOVER_FAULT
        self.lost += not (hands_over and self.verifier not in self.handed_over)
        self.handed_over |= {self.verifier} if hands_over else set()
        self.excluded |= {self.verifier} if error.error_code == failover_policy.IDLE else set()
        self.link_lost = isinstance(error, LinkDown)
        self.is_final = not isinstance(error, Unavailable | Overloaded)


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_every_failover_policy_keeps_its_rules_and_ends(seed: int) -> None:
    answer = AnyPolicy(Random(seed))

    for _ in range(answer.chance.choice([0, 10, 100])):
        if answer.phase != "over":
            answer.happens()
    for _ in range(MAX_STEPS):  # every verifier seems ready, and refuses each session
        for verifier in answer.verifiers:
            verifier.note(Event.IS_READY)
        if answer.phase != "over":
            answer.goes_on(Unavailable("not now"), opens=False)

    assert answer.phase == "over"


# Which verifier an answer is opened at, by what is known of all.


def ready(number: int, rtt_s: float = 0.0, load: float = 0.0) -> KnownVerifier:
    return KnownVerifier(f"{number}", Event.IS_READY, rtt_s=rtt_s, load=load)


def test_the_nearest_that_is_not_busy_is_used() -> None:
    far, near, busy = ready(0, 0.09), ready(1, 0.02, load=0.1), ready(2, 0.01, load=1.0)
    known = KnownVerifiers([far, near, busy])

    assert known.choose("") is near
    near.note(Event.LOST)
    assert known.choose("") is far  # it is in use, and not much farther away
    far.model = KnownModel("m", "another")
    assert known.choose("i") is busy
    assert known.choose("i", {busy}) is near


def test_new_answers_go_to_the_identity_of_most_ready_verifiers() -> None:
    known = KnownVerifiers([ready(number) for number in range(3)])
    for verifier in known.all:
        verifier.model = KnownModel("m", "old")

    preferred = [known.preferred]
    for verifier in known.all:  # an upgrade, one after the other
        verifier.note(Event.LOST)
        preferred.append(known.preferred)
        verifier.model = KnownModel("m", "new")
        verifier.note(Event.IS_READY)
        preferred.append(known.preferred)
    assert preferred == ["old", "old", "old", "new", "new", "new", "new"]


def test_one_that_speaks_another_version_opens_no_session_and_is_the_last_to_be_used() -> None:
    old, current = ready(0), ready(1, rtt_s=9.0)
    old.model = KnownModel(is_compatible=False)
    known = KnownVerifiers([old, current])

    assert known.choose("") is current
    assert known.choose("", {current}) is None
    assert known.ranked("")[0] is current


def test_one_that_drains_is_not_ready_again_because_it_takes_a_draft() -> None:
    known = ready(0)

    for event, is_ready in (
        (Event.DRAINS, False),
        (Event.ANSWERED, False),
        (Event.IS_READY, True),
        (Event.LOST, False),
        (Event.ANSWERED, True),
    ):
        known.note(event)
        assert known.is_ready is is_ready


def test_the_round_trip_is_smoothed() -> None:
    known = KnownVerifier("0")

    known.timed(0.8)
    known.timed(0.0)

    assert known.rtt_s == pytest.approx(0.7)
