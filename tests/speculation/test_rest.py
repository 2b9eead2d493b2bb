"""When the edge leaves the target alone, and when it tries again."""

from __future__ import annotations

import pytest

from picospec.speculation.drafting.rest import (
    MAX_MISSES,
    MAX_REST_TOKENS,
    MAX_UNUSED,
    PROBE_TOKENS,
    should_rest,
)
from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import Commit

UNUSED = MAX_UNUSED


def answer(committed: int, *, misses: int = 0, unused: int = 0) -> DraftingSession:
    session = DraftingSession(max_tokens=1000, stop_tokens=(), unused=unused)
    session.receive(Commit(0, 0, (1,) * committed))
    session.misses = misses
    return session


@pytest.mark.parametrize(
    ("misses", "tokens"),
    [(0, 0), (MAX_MISSES - 1, 0), (MAX_MISSES, 1), (MAX_MISSES + 3, 8), (999, MAX_REST_TOKENS)],
)
def test_the_rest_doubles_with_each_miss_beyond_those_allowed(misses: int, tokens: int) -> None:
    latencies = Latencies(0.0, 0.1, 0.01)

    rests = [should_rest(answer(n, misses=misses), latencies) for n in range(40)]

    assert rests == [n < tokens for n in range(40)]


@pytest.mark.parametrize(
    ("unused", "committed", "rtt_s", "rests"),
    [
        (UNUSED, MAX_REST_TOKENS - 1, 0.0, False),
        (UNUSED + 1, MAX_REST_TOKENS - 1, 0.0, True),
        (UNUSED + 1, MAX_REST_TOKENS + PROBE_TOKENS - 1, 0.0, False),  # a try
        (UNUSED + 1, MAX_REST_TOKENS + PROBE_TOKENS, 0.0, True),
        (UNUSED + 20, MAX_REST_TOKENS - 1, 1.0, False),  # they may be on their way
        (UNUSED + 21, MAX_REST_TOKENS - 1, 1.0, True),
        (UNUSED + 21, MAX_REST_TOKENS - 5, 1.0, False),  # a try lasts as much longer
        (UNUSED + PROBE_TOKENS, MAX_REST_TOKENS, 0.0, True),  # the first try was in vain
        (UNUSED + PROBE_TOKENS, 2 * MAX_REST_TOKENS, 0.0, False),
        (UNUSED + 10**6, 2 * MAX_REST_TOKENS, 0.0, True),
        (UNUSED + 10**6, 4 * MAX_REST_TOKENS, 0.0, False),
    ],
)
def test_an_edge_whose_right_draft_tokens_are_not_taken_rests_but_for_a_try(
    unused: int, committed: int, rtt_s: float, rests: bool
) -> None:
    session = answer(committed, unused=unused)

    assert should_rest(session, Latencies(rtt_s, 0.1, 0.01)) is rests
    assert not should_rest(session, Latencies(rtt_s, 0.0, 0.01))  # no pass was timed
