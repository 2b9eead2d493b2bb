"""Which verifier an answer begins at, by what is known of all, and where it goes on."""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link import failover_policy, prefixes
from edge_agent.link.errors import LinkDown
from edge_agent.link.failover_policy import FailoverPolicy, Wait
from edge_agent.link.known_verifiers import Event, KnownModel, KnownVerifier, KnownVerifiers
from edge_agent.link.prefixes import BLOCK, Prefixes, PromptBlocks, PromptReading, Speed
from gateway import errors
from gateway.errors import ApiError, Draining, Overloaded, Unavailable

# Whatever befalls verifiers and sessions, an answer's course keeps its rules, and ends.

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


# What is believed of the verifiers' caches.

BLOCKS = st.lists(st.sampled_from("abc"), max_size=6)


def prompt(blocks: str, rest: int = 0, owner: str = "ann") -> PromptBlocks:
    """Return the prompt with a block of equal tokens for each letter."""
    tokens = [ord(letter) for letter in blocks for _ in range(BLOCK)]
    return PromptBlocks.of((*tokens, *range(rest)), owner)


@given(st.lists(BLOCKS, max_size=8), BLOCKS, st.integers(0, BLOCK - 1))
def test_what_is_held_is_the_longest_beginning_of_what_was_sent(
    sent: list[list[str]], asked: list[str], rest: int
) -> None:
    known = Prefixes()
    for each in sent:
        known.sent(prompt("".join(each), rest))
    agreed = [
        next((i for i, (a, b) in enumerate(zip(each, asked, strict=False)) if a != b),
             min(len(each), len(asked)))
        for each in sent
    ]  # fmt: skip

    assert known.held(prompt("".join(asked), rest)) == BLOCK * max(agreed, default=0)
    assert known.held(prompt("".join(asked), owner="eve")) == 0


def test_what_is_lacked_takes_with_it_all_that_was_used_before() -> None:
    known = Prefixes()
    for blocks in ("ab", "cd", "efg"):
        known.read(prompt(blocks), known.sent(prompt(blocks)), 0)

    known.read(prompt("cd"), known.sent(prompt("cd")), BLOCK + 8)  # a part is read anyway
    assert known.held(prompt("ab")) == 2 * BLOCK
    known.read(prompt("efg"), known.sent(prompt("efg")), BLOCK)  # it had lost g, not f

    held = {blocks: known.held(prompt(blocks)) // BLOCK for blocks in ("ab", "cd", "efg")}
    assert held == {"ab": 0, "cd": 2, "efg": 3}
    known.forget()
    assert known.tokens == 0


def test_what_is_on_its_way_twice_shows_nothing_of_the_cache() -> None:
    known = Prefixes()
    known.read(prompt("ab"), known.sent(prompt("ab")), 0)

    first, second = known.sent(prompt("cd")), known.sent(prompt("cd"))
    assert known.held(prompt("cd")) == 2 * BLOCK
    known.read(prompt("cd"), first, 0)
    known.read(prompt("cd"), second, 0)

    assert known.held(prompt("ab")) == 2 * BLOCK


def test_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_BLOCKS", 3)
    known = Prefixes()

    for blocks in ("ab", "cd"):
        known.read(prompt(blocks), known.sent(prompt(blocks)), 0)

    assert known.held(prompt("ab")) == BLOCK  # the end goes first
    assert known.held(prompt("cd")) == 2 * BLOCK


def test_the_speed_is_learned_from_long_prompts() -> None:
    speed = Speed()
    for tokens, cached_tokens, seconds in ((40 * BLOCK, 0, 0.5), (40 * BLOCK, 39 * BLOCK, 0.5)):
        reading = PromptReading(prompt("ab" * (tokens // BLOCK // 2)), Prefixes(), speed)
        reading.opened(10.0)
        reading.cached_tokens(cached_tokens)
        reading.first_token(10.0 + seconds)

    assert speed.tokens_per_s == 40 * BLOCK / 0.5


# A conversation goes on where its cache is.


@pytest.mark.parametrize(
    ("rtt_s", "load", "asked", "held", "stays"),
    [
        (0.01, 0.0, 0, "abcd", True),
        (0.01, 1.0, 5, "abcd", True),  # 256 tokens are read in a quarter of a second
        (0.01, 1.0, 20, "abcd", False),
        (0.30, 0.0, 0, "abcd", False),
        (0.02, 0.0, 0, "", False),
        (0.02, 0.0, 0, "a", True),
    ],
)
def test_a_conversation_stays_unless_waiting_costs_more_than_reading(
    rtt_s: float, load: float, asked: int, held: str, stays: bool
) -> None:
    near = KnownVerifier("near", Event.IS_READY, rtt_s=0.01)
    other = KnownVerifier("other", Event.IS_READY, rtt_s=rtt_s, load=load, open_sessions=asked)
    other.prefixes.sent(prompt(held))
    known = KnownVerifiers([near, other])

    assert (known.choose("", prompt=prompt("abcde")) is other) == stays
    other.note(Event.LOST)
    assert known.choose("", prompt=prompt("abcde")) is near


class Cache:
    """A verifier's cache of this many blocks, which forgets what was used least recently."""

    def __init__(self, blocks: int) -> None:
        self.blocks, self.room = OrderedDict[int, None](), blocks

    def read(self, asked: PromptBlocks) -> int:
        """Return how many tokens it has, and take in the others."""
        lacks = (i for i, block in enumerate(asked.blocks) if block not in self.blocks)
        had = next(lacks, len(asked.blocks))
        for block in reversed(asked.blocks):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.room:
            self.blocks.popitem(last=False)
        return BLOCK * had


def read_again(chance: Random, verifiers: int, room: int, by_prompt: bool) -> int:
    """Return how many tokens of 30 conversations of 6 turns are read more than once."""
    chats = [tuple(chance.choices(range(9), k=9 * BLOCK)) for _ in range(30)]
    turns = [i for i in range(30) for _ in range(6)]
    chance.shuffle(turns)
    known = KnownVerifiers(
        [KnownVerifier(f"{i}", Event.IS_READY, rtt_s=0.02) for i in range(verifiers)]
    )
    caches = {v.label: Cache(room) for v in known.all}
    running, sizes, read = list[KnownVerifier](), [4 * BLOCK] * 30, 0
    for chat in turns:
        for verifier in known.all:
            verifier.timed(chance.uniform(0.01, 0.03))
        asked = PromptBlocks.of(chats[chat][: sizes[chat]], "ann")
        chosen = known.choose("", prompt=asked if by_prompt else None)
        assert chosen is not None
        known.current = chosen
        had = caches[chosen.label].read(asked)
        reading = PromptReading(asked, chosen.prefixes, known.speed)
        reading.opened(0.0)
        reading.cached_tokens(had)
        reading.first_token(0.05 + (asked.tokens - had) / 5000)
        read, sizes[chat] = read + asked.tokens - had, sizes[chat] + BLOCK
        chosen.open_sessions += 1
        running.append(chosen)
        if len(running) > 6:
            running.pop(0).open_sessions -= 1
    return read - 30 * 9 * BLOCK


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_conversations_over_three_verifiers_are_read_once(seed: int) -> None:
    roomy = read_again(Random(seed), 3, 1000, by_prompt=True)
    without = read_again(Random(seed), 3, 1000, by_prompt=False)

    assert read_again(Random(seed), 1, 3000, by_prompt=True) == 0
    assert roomy <= 0.1 * without
