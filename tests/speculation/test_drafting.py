"""The edge's record: its chain grows, travels, is confirmed or broken; a lie is named."""

from __future__ import annotations

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
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.messages import Commit, Draft, Reject, TokenLogprob
from speculation.model_facts import Limits
from speculation.proposer import Latencies
from tests.speculation.edges import STOP, Q, chain_of, drafting


def test_the_chain_is_the_context_and_its_survival_a_product() -> None:
    session = drafting(4, 5)
    session.receive(Commit(0, 0, (4,)))

    assert session.context == [4, 5]
    assert session.survival == 0.5
    assert drafting().survival == 1.0


def test_nothing_follows_a_stop_token_drafted_or_committed_nor_max_tokens() -> None:
    drafted, committed, full = drafting(4, STOP), drafting(), drafting(4, 5, max_tokens=3)
    assert full.may_extend
    committed.receive(Commit(0, 0, (4, STOP)))
    full.receive(Commit(0, 0, (4, 5, 6)))

    for session in (drafted, committed, full):
        assert not session.may_extend
        with pytest.raises(LocalProtocolError):
            session.extend(DraftToken(5, 0.5))


def test_chains_that_begin_wrong_are_counted_until_a_draft_token_is_accepted() -> None:
    session = drafting(4)

    session.receive(Commit(0, 0, (1,)))
    assert (session.misses, session.since_break) == (1, 0)
    session.extend(DraftToken(4, 0.5))
    session.receive(Commit(0, 1, (2, 3)))
    assert (session.misses, session.since_break) == (2, 0)
    session.receive(Commit(0, 3, (3,)))
    assert (session.misses, session.since_break) == (2, 1)
    session.extend(DraftToken(4, 0.5))
    session.extend(DraftToken(5, 0.5))
    session.receive(Commit(0, 4, (4, 6)))

    assert (session.misses, session.since_break) == (0, 0)


def test_each_draft_token_is_sent_once() -> None:
    session = drafting(4, 5)
    assert session.flush() == Draft(0, 0, 0, (4, 5))
    assert session.flush() is None

    session.extend(DraftToken(6, 0.5))

    assert session.unsent == 1
    assert session.flush(pauses=True) == Draft(0, 2, 2, (6,), pauses=True)


def test_draft_tokens_confirmed_before_they_were_sent_are_not_sent() -> None:
    session = drafting(4, 5, 6)
    session.receive(Commit(0, 0, (4, 5)))

    assert session.flush() == Draft(0, 2, 0, (6,))


@pytest.mark.parametrize(
    ("tokens", "chain", "epoch"),
    [((4, 5), [6], 0), ((4, 9), [], 1), ((4, 5, 6, 7), [], 0)],
    ids=["agrees", "differs", "goes-beyond"],
)
def test_a_commit_shortens_the_chain_or_breaks_it(
    tokens: tuple[int, ...], chain: list[int], epoch: int
) -> None:
    session = drafting(4, 5, 6)
    session.flush()

    assert session.receive(Commit(0, 0, tokens)) == tokens

    assert (session.committed, chain_of(session)) == ([*tokens], chain)
    session.extend(DraftToken(7, 0.5))
    assert session.flush() == Draft(epoch, len(tokens) + len(chain), len(chain), (7,))


@pytest.mark.parametrize(
    ("commit", "tokens"),
    [
        (Commit(0, 0, (4, 5)), ()),
        (Commit(0, 1, (5, 6)), (6,)),
        (Commit(0, 0, (4,)), ()),
        (Commit(0, 2, ()), ()),
    ],
)
def test_what_is_known_already_is_passed_over(commit: Commit, tokens: tuple[int, ...]) -> None:
    session = drafting()
    session.receive(Commit(0, 0, (4, 5)))

    assert session.receive(commit) == tokens


LIES: dict[str, tuple[Commit | Reject, str]] = {
    "a gap": (Commit(0, 2, (7,)), "Commit.start"),
    "another past": (Commit(0, 0, (5, 6)), "Commit.tokens"),
    "more than asked for": (Commit(0, 1, (1,) * 10), "Commit.tokens"),
    "more accepted than committed": (Commit(0, 1, (1,), accepted=2), "Commit.accepted"),
    "more with its own": (
        Commit(0, 1, (1,), accepted=1, verifier_accepted=1), "Commit.accepted",
    ),
    "logprobs of other tokens": (
        Commit(0, 1, (1, 2), logprobs=(TokenLogprob(-1.0),)), "Commit.logprobs",
    ),
    "no logprobs of tokens": (Commit(0, 1, (1, 2), logprobs=()), "Commit.logprobs"),
    "a rejection of what was not sent": (Reject(0, 2, 0, (), 0.0), "Reject.position"),
    "a rejection ahead": (Reject(0, 3, 0, ((3, 1.0),), 0.0), "Reject.position"),
    "a rejection of another epoch": (Reject(1, 1, 0, ((3, 1.0),), 0.0), "Reject.epoch"),
}  # fmt: skip


@pytest.mark.parametrize(("lie", "field"), LIES.values(), ids=LIES)
def test_a_lying_verifier_is_named_and_changes_nothing(
    lie: Commit | Reject, field: str
) -> None:
    session = drafting()
    session.receive(Commit(0, 0, (4,)))
    session.extend(DraftToken(1, 0.5, Q))
    session.flush()
    session.extend(DraftToken(2, 0.5, Q))
    before = repr(vars(session))
    take = session.receive if isinstance(lie, Commit) else session.before

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        take(lie)  # type: ignore[arg-type]

    assert repr(vars(session)) == before


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
