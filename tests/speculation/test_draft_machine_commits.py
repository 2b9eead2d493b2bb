"""The edge's machine passes on what the verifier sends, and learns from it."""

from __future__ import annotations

import pytest

from picospec.speculation.draft_machine import Outcome
from picospec.speculation.drafting import StreamPolicy
from picospec.speculation.messages import (
    MAX_VOCABULARY,
    Commit,
    Fault,
    Finish,
    Limits,
    Opened,
    Reject,
    RemoteProtocolError,
    Reused,
    TokenLogprob,
    Totals,
)
from tests.speculation.edges import LIMITS, Policy, machine, step


def test_a_commit_is_passed_on_without_what_was_known_before() -> None:
    edge = machine()
    logprobs = tuple(TokenLogprob(-float(i)) for i in range(3))
    first = Commit(0, 0, (4,), pass_s=0.1)
    whole = Commit(0, 0, (4, 5, 6), accepted=2, pass_s=0.1, logprobs=logprobs)

    assert edge.received(first) == Outcome(commit=first)
    assert edge.received(whole) == Outcome(
        commit=Commit(0, 1, (5, 6), accepted=1, pass_s=0.1, logprobs=logprobs[1:])
    )
    assert edge.received(whole) == Outcome()
    assert edge.session.committed == [4, 5, 6]


def test_pass_latency_is_a_running_mean_without_the_pass_that_read_the_prompt() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (4,), pass_s=9.0))
    edge.received(Commit(0, 1, (4,), pass_s=0.0))  # a recovered token takes no pass
    assert edge.latencies.pass_s == 0.0

    edge.received(Commit(0, 2, (4,), pass_s=0.1))
    edge.received(Commit(0, 3, (4,), pass_s=0.3))
    edge.received(Commit(0, 4, (4,), pass_s=0.0))

    assert edge.latencies.pass_s == pytest.approx(0.15)


def test_limits_are_those_of_the_opened_session() -> None:
    policy = Policy()
    edge = machine(policy)
    edge.next(0.0, busy=False)

    assert edge.received(Opened("s", Limits(max_ahead=3))) == Outcome()

    edge.next(0.0, busy=False)
    assert policy.asked == [LIMITS, Limits(max_ahead=3)]


def test_a_finish_with_more_tokens_of_the_verifiers_own_than_accepted_is_a_lie() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^Finish\.own: "):
        machine().received(Finish("stop", Totals(passes=2, judged=2, accepted=1, own=2)))


def test_what_the_target_had_of_the_prompt_is_known_from_the_session_of_the_first_token() -> (
    None
):
    edge = machine()

    with pytest.raises(RemoteProtocolError, match=r"^Reused\.tokens: "):
        edge.received(Reused(len(edge.opening().prompt) + 1))
    edge.received(Reused(1))
    edge.received(Commit(0, 0, (4,)))
    edge.received(Reused(2))

    assert edge.counts.reused == 1


def test_a_finish_is_passed_on_and_a_fault_is_the_links_matter() -> None:
    assert machine().received(Finish("stop")) == Outcome(finish=Finish("stop"))
    assert machine().received(Fault("a", "b")) == Outcome()


@pytest.mark.parametrize(
    "lie",
    [
        Commit(0, 0, (MAX_VOCABULARY,)),
        Reject(0, 0, 0, ((MAX_VOCABULARY, 1.0),), 0.0),
        Reject(0, 0, 0, ((1, 0.5),), 0.5, ((MAX_VOCABULARY, 0.1),)),
    ],
)
def test_what_is_no_token_of_the_target_is_a_lie(lie: Commit | Reject) -> None:
    with pytest.raises(RemoteProtocolError, match="is no token"):
        machine().received(lie)


def test_a_lie_is_raised_and_nothing_changes() -> None:
    edge = machine()
    step(edge, 7)
    before = (repr(vars(edge.session)), edge.latencies)

    for lie in (Commit(0, 5, (1,), pass_s=9.0), Reject(0, 0, 0, ((1, 1.0),), 0.0)):
        with pytest.raises(RemoteProtocolError):
            edge.received(lie)

    assert (repr(vars(edge.session)), edge.latencies) == before


def test_the_count_of_unused_commits_goes_on_from_the_session_before() -> None:
    edge = machine(StreamPolicy(), unused_commits=1000)
    edge.received(Commit(0, 0, (1,) * 8))
    edge.received(Commit(0, 8, (1,) * 12, pass_s=0.1))

    assert edge.next(0.0, busy=False) == Outcome()  # it rests from the beginning
