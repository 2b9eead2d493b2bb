"""The edge's machine asks for steps, sends in time, and takes what the draft model returned."""

from __future__ import annotations

import pytest

from picospec.speculation.distributions import DraftToken
from picospec.speculation.draft_machine import DraftStep, Outcome
from picospec.speculation.drafting import StreamPolicy
from picospec.speculation.learning import Latencies
from picospec.speculation.messages import Commit, Draft, Limits
from tests.speculation.edges import STOP, Policy, chain_of, machine, step


def test_a_step_follows_the_committed_text_and_the_chain() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (7, 8)))
    step(edge, 9)

    outcome = edge.next(6.0, busy=False)

    assert outcome.step == DraftStep([7, 8, 9], [], 0, 6.0)


def test_nothing_is_due_while_a_step_is_being_made() -> None:
    edge = machine(Policy(unsent=5))
    step(edge, 9)

    assert edge.next(6.0, busy=True) == Outcome()
    assert edge.session.unsent == 1


def test_while_steps_go_on_the_policy_says_when_to_send() -> None:
    edge = machine(Policy(unsent=2))
    step(edge, 7)

    assert step(edge, 8).send == ()
    assert step(edge, 9).send == (Draft(0, 0, 0, (7, 8)),)


def test_when_no_step_is_due_all_is_sent_and_the_draft_pauses() -> None:
    edge = machine(Policy(drafts=1, unsent=2))
    step(edge, 7)

    outcome = edge.next(6.0, busy=False)

    assert outcome == Outcome(send=(Draft(0, 0, 0, (7,), pauses=True),))
    assert edge.next(6.0, busy=False) == Outcome()


def test_no_step_is_asked_for_without_a_draft_model() -> None:
    assert machine(drafts=False).next(0.0, busy=False) == Outcome()


@pytest.mark.parametrize("tokens", [(1, STOP), (1, 2, 3)], ids=["stop", "length"])
def test_no_step_is_asked_for_after_the_end_of_the_answer(tokens: tuple[int, ...]) -> None:
    edge = machine(max_tokens=3)
    edge.received(Commit(0, 0, tokens))

    assert edge.next(0.0, busy=False) == Outcome()


def test_a_draft_model_that_failed_is_asked_for_nothing_more() -> None:
    edge = machine()
    step(edge, 7)

    edge.stop_drafting()

    assert edge.next(0.0, busy=False) == Outcome(send=(Draft(0, 0, 0, (7,), pauses=True),))


def test_the_chain_covers_a_pass_and_a_round_trip() -> None:
    edge = machine(StreamPolicy(), limits=Limits(max_verify=8, max_ahead=64))
    step(edge, 1)
    step(edge, 2)
    edge.received(Commit(0, 0, (1,), pass_s=5.0))  # it also read the prompt
    edge.received(Commit(0, 1, (2,), pass_s=0.049))

    for _ in range(30):
        if edge.next(5.0, busy=False).step:
            step(edge, 3)

    assert len(edge.session.chain) == 8 + 10


@pytest.mark.parametrize(
    ("looks_up", "max_tokens", "tokens", "taken"),
    [
        (0, 9, (0, 2, 3), 1),  # the first was due
        (2, 9, (1, 2, 3), 2),
        (9, 2, (1, 2, 3), 2),
        (9, 9, (1, STOP, 3), 2),
        (9, 9, (1, 2, 3), 3),
    ],
)
def test_of_a_steps_draft_tokens_the_first_is_taken_and_others_while_there_is_room(
    looks_up: int, max_tokens: int, tokens: tuple[int, ...], taken: int
) -> None:
    edge = machine(Policy(looks_up=looks_up), max_tokens=max_tokens)

    step(edge, *tokens)

    assert chain_of(edge.session) == list(tokens[:taken])
    assert (edge.counts.drafted, edge.counts.stale_steps) == (taken, 0)


def test_a_step_may_complete_no_token_and_a_later_one_several() -> None:
    """A draft model of another vocabulary writes parts of the target's tokens."""
    edge = machine()
    step(edge, 7, took_s=9.0)

    for drafts in (), (), (1, 2):
        assert chain_of(edge.session) == [7]
        step(edge, *drafts, took_s=0.01)

    assert chain_of(edge.session) == [7, 1, 2]
    assert edge.latencies.draft_s == pytest.approx(3 * 0.01 / 2)


@pytest.mark.parametrize(
    ("meanwhile", "chain"),
    [((8,), []), ((7, 9), []), ((7,), [9])],
    ids=["broke", "was-overtaken", "was-confirmed"],
)
def test_a_step_whose_chain_is_gone_is_dropped_but_its_time_is_learned(
    meanwhile: tuple[int, ...], chain: list[int]
) -> None:
    edge = machine()
    step(edge, 7)
    asked = edge.next(1.0, busy=False).step
    assert asked
    edge.received(Commit(0, 0, meanwhile))

    edge.drafted(asked, [DraftToken(9, 0.9)], 1.04)

    assert chain_of(edge.session) == chain
    assert (edge.counts.drafted, edge.counts.stale_steps) == (1 + len(chain), 1 - len(chain))
    assert edge.latencies.draft_s == pytest.approx(0.04)


def test_draft_time_is_a_running_mean_over_steps_that_read_one_token() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)  # it reads the prompt
    assert edge.latencies == Latencies(0.05, 0.0, 0.0)

    step(edge, 2, took_s=0.02)
    step(edge, 3, took_s=0.04)

    assert edge.latencies.draft_s == pytest.approx(0.025)


def test_a_step_after_a_break_or_over_several_tokens_teaches_no_draft_time() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)
    edge.received(Commit(0, 0, (5,)))
    step(edge, 2, took_s=9.0)  # the draft model goes back first
    edge.received(Commit(1, 1, (2, 3, 4)))
    step(edge, 5, took_s=9.0)  # it reads three tokens

    assert edge.latencies.draft_s == 0.0
    step(edge, 6, took_s=0.02)

    assert edge.latencies.draft_s == pytest.approx(0.02)


def test_a_step_over_several_tokens_shows_the_most_that_one_takes() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)
    step(edge, 2, took_s=0.5)
    edge.received(Commit(0, 0, (1, 2, 3, 4)))
    step(edge, 5, took_s=0.1)

    assert edge.latencies.draft_s == pytest.approx(0.1)


@pytest.mark.parametrize("room", [3, 2])
def test_a_step_that_drafted_several_tokens_has_read_all_but_the_last(room: int) -> None:
    edge = machine(Policy(looks_up=room))
    step(edge, 1, 2, 3, took_s=9.0)

    step(edge, 4, took_s=0.02)

    assert edge.latencies.draft_s == pytest.approx(0.02)
