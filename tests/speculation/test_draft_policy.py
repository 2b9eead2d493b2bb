"""When the edge drafts, sends and pauses: while it pays, in tokens a second."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.draft_policy import (
    MAX_MISSES,
    MAX_PAUSE_TOKENS,
    StreamPolicy,
    should_pause,
    window,
)
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.messages import Commit
from speculation.model_facts import Limits
from speculation.proposer import Latencies
from speculation.speedup import (
    AnswerSpeedup,
    AnswerSpeedups,
    SpeedupEstimate,
    SpeedupEstimates,
)

# Tables say when the edge drafts, sends and pauses; properties, what must never go wrong.

LIMITS = Limits(max_verify=16, max_ahead=64)
UNKNOWN = Latencies(0.0, 0.0, 0.0)
SECONDS = st.floats(0.0, 10.0)
LIKELY = DraftToken(1, 0.9)


def drafted(*chain: DraftToken) -> DraftingSession:
    session = DraftingSession(max_tokens=100, stop_tokens=())
    for token in chain:
        session.extend(token)
    return session


@pytest.mark.parametrize(
    ("rtt_s", "pass_s", "draft_s", "tokens"),
    [
        (0.0, 0.0, 0.01, 64),
        (0.01, 0.2, 0.02, 27),
        (0.2, 0.2, 0.02, 36),
        (5.0, 0.2, 0.02, 64),
        (0.2, 0.2, 0.0, 64),
    ],
)
def test_the_window_is_a_pass_and_what_is_drafted_meanwhile(
    rtt_s: float, pass_s: float, draft_s: float, tokens: int
) -> None:
    assert window(LIMITS, Latencies(rtt_s, pass_s, draft_s)) == tokens


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_the_window_grows_with_distance_and_never_over_the_limit(
    rtt_s: float, more_s: float, pass_s: float, draft_s: float
) -> None:
    near = window(LIMITS, Latencies(rtt_s, pass_s, draft_s))
    far = window(LIMITS, Latencies(rtt_s + more_s, pass_s, draft_s))

    assert LIMITS.max_verify <= near <= far <= LIMITS.max_ahead


@pytest.mark.parametrize(
    ("survival", "tokens", "expected"),
    [(1.0, 1, True), (0.1, 9, True), (0.099, 1, False), (1.0, 10, False), (0.5, 11, False)],
)
def test_a_chain_grows_while_it_may_be_accepted_and_there_is_room(
    survival: float, tokens: int, expected: bool
) -> None:
    session = drafted(DraftToken(1, survival), *[DraftToken(1, 1.0)] * (tokens - 1))
    limits = Limits(max_verify=4, max_ahead=10)

    assert StreamPolicy().may_draft(session, UNKNOWN, limits) is expected
    assert StreamPolicy().may_look_up(session, UNKNOWN, limits) is expected


def test_drafting_stops_at_the_window_and_looking_up_goes_on_to_the_limit() -> None:
    latencies = Latencies(0.0, 0.2, 0.1)  # two draft steps a pass
    full, longer, longest = (drafted(*[DraftToken(1, 1.0)] * n) for n in (17, 18, 64))

    assert StreamPolicy().may_draft(full, latencies, LIMITS)
    assert not StreamPolicy().may_draft(longer, latencies, LIMITS)
    assert StreamPolicy().may_look_up(longer, latencies, LIMITS)
    assert not StreamPolicy().may_look_up(longest, latencies, LIMITS)


@pytest.mark.parametrize("may_pause", [True, False])
def test_a_pausing_edge_drafts_nothing_unless_it_never_pauses(may_pause: bool) -> None:
    session = DraftingSession(max_tokens=100, stop_tokens=())
    session.misses = MAX_MISSES
    policy = StreamPolicy(may_pause=may_pause)

    assert policy.may_draft(session, Latencies(0.0, 0.1, 0.01), LIMITS) is not may_pause
    assert policy.may_look_up(session, Latencies(0.0, 0.1, 0.01), LIMITS) is not may_pause


@pytest.mark.parametrize(
    ("unsent", "in_flight", "drafting", "expected"),
    [
        (0, 0, False, False),
        (1, 0, True, False),
        (1, 0, False, True),
        (2, 0, True, True),
        (2, 16, True, True),
        (2, 17, True, False),
        (3, 24, True, True),
        (2, 17, False, True),
    ],
)
def test_draft_tokens_are_sent_in_pairs_and_more_at_once_where_many_are_away(
    unsent: int, in_flight: int, drafting: bool, expected: bool
) -> None:
    session = drafted(*[LIKELY] * in_flight)
    session.flush()
    for _ in range(unsent):
        session.extend(LIKELY)

    assert (session.unsent, session.in_flight) == (unsent, in_flight)
    assert StreamPolicy().should_send(session, drafting=drafting) is expected


def answer(committed: int, *, misses: int = 0) -> DraftingSession:
    session = DraftingSession(max_tokens=1000, stop_tokens=())
    session.receive(Commit(0, 0, (1,) * committed))
    session.misses = misses
    return session


@pytest.mark.parametrize(
    ("misses", "tokens"),
    [
        (0, 0),
        (MAX_MISSES - 1, 0),
        (MAX_MISSES, 1),
        (MAX_MISSES + 3, 8),
        (999, MAX_PAUSE_TOKENS),
    ],
)
def test_the_rest_doubles_with_each_miss_beyond_those_allowed(misses: int, tokens: int) -> None:
    rests = [should_pause(answer(n, misses=misses)) for n in range(40)]

    assert rests == [n < tokens for n in range(40)]


# Draft tokens are weighed by tokens a second: answers pause where they earn nothing.


PLAIN_S = 0.02


class Host:
    """Both ends on one machine. tokens: what a Commit has, on average, where an answer drafts.
    slower: passes take so many times longer while answers draft. noise: how much they vary."""

    def __init__(
        self, tokens: float, slower: float, noise: float = 0.02, seed: int = 0
    ) -> None:
        self.estimate, self.chance = SpeedupEstimate(), Random(seed)
        self.tokens, self.slower, self.noise = tokens, slower, noise
        self.made = self.paused = 0
        self.seconds = 0.0

    def answers(self, count: int, tokens: int, on_the_way: float = 0.0) -> float:
        """Run so many answers side by side; return their tokens a second over those of plain
        ones."""
        shares, made, seconds = [AnswerSpeedup(self.estimate) for _ in range(count)], 0, 0.0
        left = [tokens] * count
        while max(left) > 0:
            drafts = sum(share.drafts for share in shares)
            pass_s = PLAIN_S * (1 + (self.slower - 1) * drafts / count)
            pass_s *= 1 + self.chance.uniform(-self.noise, self.noise)
            seconds += pass_s
            for i, share in enumerate(shares):
                accepted = self._accepted() if share.drafts else 0
                commit = Commit(0, made, (7,) * (1 + accepted), accepted, pass_s=pass_s)
                share.committed(commit, on_the_way, clear=True)
                made, left[i] = made + 1 + accepted, left[i] - 1 - accepted
                self.paused += not share.drafts
                self.made += 1
        for share in shares:
            share.leave()
        return made / count / seconds * PLAIN_S

    def _accepted(self) -> int:
        """Return a number from a geometric distribution."""
        accepted, more = 0, 1 - 1 / self.tokens
        while self.chance.random() < more:
            accepted += 1
        return accepted


@pytest.mark.parametrize("slower", [1.1, 1.3, 1.6])
@pytest.mark.parametrize("count", [1, 4])
def test_where_drafting_costs_more_than_it_brings_answers_rest(
    slower: float, count: int
) -> None:
    host = Host(1.05, slower)
    early = [host.answers(count, 100) for _ in range(2)]
    later = [host.answers(count, 100) for _ in range(10)]

    assert min(early) > 0.8
    assert sum(later) / len(later) > 0.96
    assert host.estimate.cost == pytest.approx(slower, rel=0.1)


@pytest.mark.parametrize(("tokens", "slower"), [(1.3, 1.0), (2.0, 1.0), (2.0, 1.3), (4.0, 1.5)])
def test_where_drafting_pays_probes_cost_little(tokens: float, slower: float) -> None:
    host = Host(tokens, slower)
    ratios = [host.answers(1, 200) for _ in range(60)]

    assert sum(ratios) / len(ratios) > 0.95 * tokens / slower
    assert host.paused > 0  # it was tried


def test_a_gain_that_comes_back_is_found_again() -> None:
    host = Host(1.0, 1.2)
    host.answers(1, 400)
    host.tokens = 3.0

    assert sum(host.answers(1, 200) for _ in range(4)) / 4 > 1.5


def test_draft_tokens_that_are_right_and_never_used_are_no_longer_drafted() -> None:
    host = Host(1.0, 1.0)
    for _ in range(10):
        host.answers(1, 100)

    assert host.paused > 0.6 * host.made


def test_nothing_is_learned_while_some_answers_draft_and_others_rest() -> None:
    estimate = SpeedupEstimate()
    one, other = AnswerSpeedup(estimate), AnswerSpeedup(estimate)
    estimate.pause, other.drafts = 1e9, False
    estimate.probes.switched(drafts=False)
    for at in range(200):
        one.committed(Commit(0, at, (7, 7), 1, pass_s=0.03), 0.0, clear=True)
        other.committed(Commit(0, at, (7,), pass_s=0.02), 0.0, clear=True)

    assert estimate.cost == 1.0


@given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1.0, 4.0), st.floats(1.0, 2.0))
def test_answers_may_come_and_go_and_no_trial_lasts(
    seed: int, count: int, tokens: float, slower: float
) -> None:
    host = Host(tokens, slower, noise=0.3, seed=seed)
    for _ in range(3):
        assert host.answers(count, 60, on_the_way=seed % 5) > 0.5

    assert (host.estimate.probes._answers, host.estimate.probes._drafting) == (0, 0)


def test_an_answer_takes_part_where_its_session_is_until_it_leaves() -> None:
    here, there = SpeedupEstimates(), SpeedupEstimates()
    now = [here]
    speedups = AnswerSpeedups(lambda: now[0], drafts=False, looks_up=True)

    def answers() -> list[tuple[int, int]]:
        return [
            (each.draft.probes._answers, each.lookup.probes._answers) for each in (here, there)
        ]

    speedups.start_drafting()
    assert answers() == [(1, 1), (0, 0)]
    now[0] = there
    speedups.move()
    assert answers() == [(0, 0), (1, 1)]
    speedups.stop_drafting()
    assert answers() == [(0, 0), (0, 1)]
    for _ in range(2):
        speedups.leave()
        assert answers() == [(0, 0), (0, 0)]
