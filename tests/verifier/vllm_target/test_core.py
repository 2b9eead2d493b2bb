"""What vLLM's core does for sessions, without vLLM: it unpacks messages, keeps a slot of each
session, and plans steps.
"""

from __future__ import annotations

from itertools import repeat
from math import inf
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from speculation.coupled import Coupled
from speculation.distributions import Distribution
from speculation.judge import Judgement, Rejection
from speculation.logit_settings import LogitSettings
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Finish,
    Message,
    Open,
    Pushed,
    Recovered,
    Redraw,
    Reject,
    Sampling,
    TokenLogprob,
    Totals,
)
from speculation.model_facts import Limits
from speculation.noise import noise_index
from speculation.separate import Separate
from speculation.verify_machine import PassPlan, Verdict, VerifyMachine
from verifier.target import Reply
from verifier.vllm_target.core.slot import SessionSlot
from verifier.vllm_target.core.step_planner import NextStep, Running, StepPlanner
from verifier.vllm_target.ipc_messages import Admission
from verifier.vllm_target.packing import packed, unpacked
from verifier.vllm_target.verify_request import VerifyRequest

MESSAGES: list[Message] = [
    Draft(3, 2**40, 1, (5, 2**31), (65535, 1), pauses=True),
    Recovered(1, 2, 3),
    Redraw(1, 2, 3),
    CachedPromptTokens(9),
    Commit(1, 2, (3, 4), 1, 1, 0.1, 1 / 3, (TokenLogprob(-0.1, ((3, -2.5),)),) * 2),
    Reject(1, 2, 0, ((3, 0.1), (4, 0.2)), 0.7, ((5, 1e-30),)),
    Finish("stop", Totals(1, 2, 3, 4, 5)),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_arrives_as_it_was(message: Message) -> None:
    assert repr(unpacked(packed(message))) == repr(message)


def test_every_message_of_the_two_processes_is_among_them() -> None:
    assert {type(each) for each in MESSAGES} == {*get_args(Pushed), *get_args(Reply)}


def test_an_admission_survives_its_journey() -> None:
    request = Open("m", "v", (), Sampling(0.5, 0.1, 3, 0.9), 2**62, 7, (1, 2), "separate")
    settings = LogitSettings(1.5, logit_bias={5: -1.5})
    admission = Admission("s", request, 44, Limits(3, 9), settings, 99)

    assert Admission.unpack(admission.pack()) == admission


# A slot, driven as the scheduler does.

PROMPT_TOKENS = 10
PROMPT = [7, 8] * 5
NONE = LogitSettings()
ROWS = 3
"""Of every step."""


class Core:
    """One session's slot and machine, driven as the scheduler does."""

    def __init__(self, asked: LogitSettings = NONE, **fields: Any) -> None:
        settings: dict[str, Any] = {"seed": 9, "max_tokens": 20, "stop_tokens": (0,)}
        request = Open("m", "v", tuple(PROMPT), Sampling(), **(settings | fields))
        admission = Admission("s", request, PROMPT_TOKENS, Limits(4, 32), asked, 1000)
        self.machine = VerifyMachine(repeat(0.5))
        self.machine.open("s", request, admission.limits, vocabulary_size=1000, now=0.0)
        self.slot = SessionSlot(admission, self.machine.session("s"), PROMPT)
        self.known = PROMPT_TOKENS + len(request.committed)
        """Tokens with which vLLM's request begins."""

        self._plan = PassPlan({}, 1.0)

    def receive(self, message: Pushed, arrived: float = 1.0) -> None:
        self.slot.send(self.machine.received("s", message, arrived=arrived))

    def begin(self, generated: int, injected: int) -> VerifyRequest:
        """Begin a step. generated: tokens vLLM knows of. injected: our tokens in the step."""
        missing = self.slot.missing(self.known + generated)
        begins = self.slot.may_begin(missing, injected)
        self._plan = self.machine.begin({"s": injected - len(missing)} if begins else {}, 1.0)
        return self.slot.verify_request(self._plan.passes.get("s"), missing)

    def run(self, *tokens: int, accepted: int = 0, rejection: Rejection | None = None) -> None:
        """End the step's pass."""
        verdicts = {"s": Verdict(Judgement(tokens, accepted, rejection))}
        judged = len(self._plan.passes["s"].draft)
        down = self.machine.ran(self._plan, verdicts, 2.0, None)["s"]
        self.slot.send(down, judged=judged, rows=ROWS)

    def offered(self) -> tuple[int, ...] | None:
        """Return the draft tokens of the pass that should start; None: none should."""
        return self.machine.offer(["s"], 3.0, rows=64).start.get("s")

    @property
    def sent(self) -> list[Message]:
        return [unpacked(each.frame) for each in self.slot.frames]


def rejected(token: int, *allowed: int) -> Rejection:
    distribution = Distribution(np.array(allowed), np.full(len(allowed), 1.0 / len(allowed)))
    return Rejection(token, distribution)


def test_what_a_session_begins_with_is_vllms_prompt_and_its_own_text() -> None:
    core = Core(LogitSettings(frequency_penalty=0.5), committed=(3, 4, 4))

    request = core.begin(generated=0, injected=0)
    core.run(5)

    assert request.known == 0  # vLLM knows all three
    assert request.rule == Coupled(9, noise_index(PROMPT_TOKENS, 3))
    assert request.adjustment is not None
    assert request.adjustment.position == 3
    assert core.slot.missing(core.known + 1) == ()
    assert [core.slot.take_initial_output(), core.slot.take_initial_output()] == [[3, 4, 4], []]
    assert core.sent[0] == Commit(0, 3, (5,), pass_s=1.0, queue_s=1.0)


@pytest.mark.parametrize(("injected", "judged"), [(0, ()), (2, (5, 6))])
def test_a_step_judges_the_draft_tokens_that_it_has_rows_for_even_with_fill_never(
    injected: int, judged: tuple[int, ...]
) -> None:
    core = Core(fill="never")
    core.receive(Draft(1, 0, 0, (5, 6, 7)))

    assert core.begin(0, injected).draft == judged


def test_a_request_carries_what_the_committed_text_changes() -> None:
    core = Core(LogitSettings(repetition_penalty=1.5), max_tokens=100)
    core.begin(0, 0)
    core.run(4)
    core.begin(1, 0)
    core.run(7)

    request = core.begin(2, 0)

    assert (request.rule, request.draft) == (Coupled(9, noise_index(PROMPT_TOKENS, 2)), ())
    assert request.adjustment is not None
    assert request.adjustment.position == 2
    assert Core().begin(0, 0).adjustment is None  # without settings it carries no text
    seen = request.adjustment.seen
    assert seen is not None
    assert dict(zip(seen.tokens, seen.counts, strict=True)) == {4: 1.0, 7: 1.0, 8: 0.0}


def test_a_recovered_token_is_owed_until_the_next_step() -> None:
    core = Core(judge="separate")
    core.machine.latency.observe(1, 0.01)
    core.begin(0, 0)
    core.run(5)
    core.receive(Draft(1, 1, 0, (6, 7), q=(100, 100)))
    core.begin(1, 2)
    core.run(6, accepted=1, rejection=rejected(7, 8, 9))
    assert core.machine.wait_s(["s"], 3.0) == inf
    sent = len(core.sent)

    core.receive(Recovered(2, 2, 8))
    core.receive(Draft(2, 3, 0, (3,), q=(50,)))

    assert len(core.sent) == sent + 1
    assert core.slot.missing(core.known + 2) == (8,)
    assert core.offered() == (3,)
    request = core.begin(2, 2)
    assert (request.known, request.draft) == (1, (8, 3))
    assert request.rule == Separate((50,), (0.5, 0.5))
    assert core.slot.missing(core.known + 3) == ()


def test_no_pass_begins_while_a_token_is_awaited_or_a_step_cannot_tell_vllm_of_it() -> None:
    core = Core(judge="separate")
    core.begin(0, 0)
    core.run(rejection=rejected(7, 8, 9))
    assert core.offered() is None
    assert core.begin(0, 0).rule is None

    core.receive(Recovered(2, 0, 8))

    assert core.begin(0, 0).rule is None
    assert core.begin(0, 1).draft == (8,)


def test_only_the_first_frame_of_a_pass_tells_what_it_took() -> None:
    core = Core(max_tokens=2)
    core.receive(Draft(1, 0, 0, (5,)))
    core.begin(0, 1)
    core.run(5, 6, accepted=1)

    assert [type(message) for message in core.sent] == [Commit, Finish]
    assert [(each.judged, each.rows) for each in core.slot.frames] == [(1, ROWS), (0, 0)]


def test_a_session_is_over_when_it_has_finished_or_its_edge_was_at_fault() -> None:
    finished, faulty = Core(max_tokens=1), Core()
    assert not finished.slot.over

    finished.begin(0, 0)
    finished.run(5)
    faulty.slot.error = "Draft.tokens: empty"

    assert finished.slot.over
    assert faulty.slot.over


# The planner of steps, with the machine.


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

    plan = planner.plan(planner.decide(running, 0.0), 0.0, rows=2048, ahead=True)

    assert plan.left_out == ["a"]
    assert plan.drafts == {"b": (), "c": (5, 6)}


@pytest.mark.parametrize(("admits", "left_out"), [(False, ("a",)), (True, [])])
def test_no_session_is_held_out_of_a_step_that_begins_to_read_a_prompt(
    admits: bool, left_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, running = beside("a", admits=admits)
    monkeypatch.setattr(VerifyMachine, "wait_s", lambda machine, names, now: 1.0)

    plan = planner.plan(NextStep(running), 0.0, rows=2048, ahead=False)

    assert plan.left_out == left_out


def test_a_wait_that_has_ended_is_over_until_a_message_comes_or_a_step_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner, running = beside("a")
    assert planner.wait_s(running.free, 0.0) == 0.0
    monkeypatch.setattr(VerifyMachine, "wait_s", lambda machine, names, now: 1.0)

    planned = [planner.plan(NextStep(running), 0.0, rows=2048, ahead=False) for _ in range(2)]

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
