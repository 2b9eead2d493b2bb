"""The planner of steps is pure: it is tested with the machine, and without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from speculation.judge import Judgement
from speculation.messages import Commit, Draft, Open, Sampling
from speculation.model_facts import Limits
from speculation.verify_machine import Verdict, VerifyMachine
from verifier.vllm_target.core.step_planner import NextStep, Running, StepPlanner

ROWS = 2048


def beside(
    *places: str, drafting: str = "", admits: bool = False
) -> tuple[StepPlanner, Running]:
    """Return a planner. places: of each request that runs, its session or "plain", with + if it
    has a row in the step under way. drafting: sessions that judge draft tokens there."""
    machine = VerifyMachine(iter(()))
    machine.latency.observe(1, 0.008)
    names = {place.strip("+"): "+" in place for place in places if "plain" not in place}
    for name, ahead in names.items():
        opened = Open("m", "v", (1, 2), Sampling(), 0, 9, ())
        machine.open(name, opened, Limits(), vocabulary_size=100, now=0.0)
        if name in drafting:
            machine.received(name, Draft(0, 0, 0, (5, 6)), arrived=0.0)
            if ahead:
                machine.begin({name: 2}, 0.0)
    under_way = [name for name, ahead in names.items() if ahead]
    free = [name for name, ahead in names.items() if not ahead]
    running = Running(under_way, free, len(places) - len(names), admits)
    return StepPlanner(machine), running


ASYNCHRONOUS = {
    "a session without draft tokens runs on": (("a+",), "", True),
    "so do two": (("a+", "b+"), "", True),
    "one with draft tokens waits for their outcome": (("a+",), "a", False),
    "another session waits with it": (("a+", "b"), "ab", False),
    "a request without a session does not wait": (("plain+", "a+"), "a", True),
    "nor does a session that runs on beside it": (("a+", "b+"), "a", True),
    "it waits beside two that judge": (("a+", "b+", "c+"), "ab", False),
}


@pytest.mark.parametrize(
    ("places", "drafting", "expected"), ASYNCHRONOUS.values(), ids=ASYNCHRONOUS
)
def test_a_step_is_planned_ahead_unless_it_would_part_sessions_that_draft(
    places: tuple[str, ...], drafting: str, expected: bool
) -> None:
    planner, running = beside(*places, drafting=drafting)

    assert planner.decide(running, 0.0).waits is not expected


def test_a_prompt_is_read_ahead_once_and_nothing_is_where_each_result_is_needed() -> None:
    planner, running = beside("a+", drafting="a", admits=True)

    assert not planner.decide(running, 0.0).waits
    planner.observe_admission(failed=True)
    assert planner.decide(running, 0.0).waits
    planner.observe_change()
    assert not planner.decide(running, 0.0).waits
    planner.needing_results.add("a request with a grammar")
    assert planner.decide(running, 0.0).waits


def test_a_step_that_is_planned_ahead_leaves_out_sessions_whose_draft_tokens_are_judged() -> (
    None
):
    planner, running = beside("plain+", "a+", "b+", "c", drafting="ac")

    plan = planner.plan(planner.decide(running, 0.0), 0.0, rows=ROWS, ahead=True)

    assert plan.left_out == ["a"]
    assert plan.drafts == {"b": (), "c": (5, 6)}


@pytest.mark.parametrize(("admits", "left_out"), [(False, ("a",)), (True, [])])
def test_no_session_is_held_out_of_a_step_that_begins_to_read_a_prompt(
    admits: bool, left_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, running = beside("a", admits=admits)
    monkeypatch.setattr(VerifyMachine, "wait_s", lambda machine, names, now: 1.0)

    plan = planner.plan(NextStep(running), 0.0, rows=ROWS, ahead=False)

    assert plan.left_out == left_out


def test_a_wait_that_has_ended_is_over_until_a_message_comes_or_a_step_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner, running = beside("a")
    assert planner.wait_s(running.free, 0.0) == 0.0
    monkeypatch.setattr(VerifyMachine, "wait_s", lambda machine, names, now: 1.0)

    planned = [planner.plan(NextStep(running), 0.0, rows=ROWS, ahead=False) for _ in range(2)]

    assert [plan.left_out for plan in planned] == [[], ("a",)]
    planner.is_due = True
    planner.observe_message()
    assert not planner.is_due


def test_passes_end_in_the_order_of_their_steps_and_last_from_one_end_to_the_next() -> None:
    planner, _ = beside("a+", "b", drafting="b")
    shape: Any = {"with_prompt": False, "with_drafts": False, "says_nothing": False}

    def ended(now: float, **tokens: tuple[int, ...]) -> dict[str, tuple[object, ...]]:
        planner.ended(now)
        judged = {name: Judgement(each, len(each) - 1) for name, each in tokens.items()}
        verdicts = {name: Verdict(each) for name, each in judged.items()}
        _, down = planner.ran(verdicts, decoded=len(tokens), **shape)
        commits = {name: messages[0] for name, messages in down.items()}
        assert all(isinstance(commit, Commit) for commit in commits.values())
        return {n: (c.tokens, c.accepted, c.queue_s, c.pass_s) for n, c in commits.items()}

    planner.start(ahead=False)
    planner.begin({"b": 2}, 1.0, {})
    planner.start(ahead=True)
    planner.begin({}, 2.0, {})

    assert ended(9.0, a=(7,), b=(5, 6, 8)) == {
        "a": ((7,), 0, 1.0, 8.0),
        "b": ((5, 6, 8), 2, 1.0, 8.0),
    }
    assert ended(15.0, a=(9,)) == {"a": ((9,), 0, 0.0, 6.0)}


@pytest.mark.parametrize(("sleeps", "after_s"), [(False, [0.5]), (True, [])])
def test_the_time_between_two_steps_is_learned_unless_the_core_slept_between(
    sleeps: bool, after_s: list[float]
) -> None:
    planner, _ = beside("a")
    seen: list[float] = []
    observed = SimpleNamespace(observe=lambda seconds, others_s, ahead: seen.append(seconds))
    planner._machine.outcome = observed
    planner.ended(1.0)
    if sleeps:
        planner.observe_sleep()
    planner.start(ahead=False)
    planner.begin({"a": 0}, 1.0, {})

    planner.ended(1.5)
    verdicts = {"a": Verdict(Judgement((7,), 0))}
    planner.ran(verdicts, decoded=1, with_prompt=False, with_drafts=False, says_nothing=False)

    assert seen == after_s
