"""What the scheduler makes of messages between two steps, and when it wakes by itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from math import inf
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any

import pytest

from speculation.distributions import Q_SCALE
from speculation.logit_settings import LogitSettings
from speculation.messages import Draft, Finish, Message, Open, Pushed, Reject, Sampling
from speculation.model_facts import Limits
from speculation.verify_machine import VerifyMachine
from tests.guards import GUARD_S
from verifier.vllm_target.core.slot import SessionSlot
from verifier.vllm_target.core.step_planner import StepPlan, StepPlanner
from verifier.vllm_target.ipc_messages import PUSH, Admission
from verifier.vllm_target.packing import packed, unpacked

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_what_comes_for_a_session_gets_the_time_when_it_came() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import put_stamped

    received: Queue[Any] = Queue()
    messages = [
        (EngineCoreRequestType.WAKEUP, None),
        (EngineCoreRequestType.UTILITY, [0, 1, "picospec_figures", []]),
        (EngineCoreRequestType.UTILITY, [0, 2, PUSH, [[["s", b"frames"]]]]),
    ]
    for message in messages:
        put_stamped(received.put_nowait, message)

    (_, _), (_, figures), (_, push) = (received.get() for _ in messages)
    assert figures[3] == []
    assert push[3] == [[["s", b"frames"]], pytest.approx(time.monotonic(), abs=GUARD_S)]


def test_a_core_that_waits_wakes_at_the_time_and_not_before() -> None:
    pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import get_in_time

    begun = time.monotonic()

    kind, _ = get_in_time(Queue().get, begun + 0.05, block=True)

    assert kind is EngineCoreRequestType.WAKEUP
    assert time.monotonic() - begun >= 0.05


def test_a_time_that_is_over_wakes_at_once_and_messages_come_first() -> None:
    pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import get_in_time

    received: Queue[str] = Queue()
    received.put_nowait("a message")

    assert get_in_time(received.get, 0.0) == "a message"
    assert get_in_time(received.get, 0.0)[0] is EngineCoreRequestType.WAKEUP


def test_a_core_that_only_looks_does_not_wait() -> None:
    pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
    from verifier.vllm_target.core.sessions import get_in_time

    for at in (0.0, inf):
        with pytest.raises(Empty):
            get_in_time(Queue().get, at, block=False)


class Core(SimpleNamespace):
    """As much of vLLM's EngineCore as the scheduler steps; it plans no more than `left`."""

    def __init__(self, scheduler: Any, left: int) -> None:
        super().__init__(batch_queue=deque(), async_scheduling=True, left=left, made=[])
        self.scheduler = scheduler

    def step(self) -> tuple[dict[int, Any], bool]:
        self.made.append("waited")
        return {}, True

    def step_with_batch_queue(self) -> tuple[dict[int, Any] | None, bool]:
        if self.left and self.scheduler.has_requests():
            self.left -= 1
            self.batch_queue.appendleft("batch")
            self.made.append("planned")
            if len(self.batch_queue) < 2:
                return None, True
        self.batch_queue.pop()
        self.made.append("ended")
        return {}, False


def test_the_running_batch_ends_before_a_step_that_needs_its_result_and_steps_overlap_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    from verifier.vllm_target.core.scheduler import AsyncPicoScheduler

    monkeypatch.setattr(Original, "has_requests", lambda scheduler: True)
    scheduler: Any = object.__new__(AsyncPicoScheduler)
    scheduler._slots, scheduler._planner = {}, StepPlanner(VerifyMachine(iter(())))
    scheduler.running, scheduler.waiting, scheduler.max_num_running_reqs = [], [], 0
    scheduler.kv_holding_waiting, scheduler.deferred_waiting = [], set()
    scheduler.engine = core = Core(scheduler, left=5)

    def stepped(times: int) -> list[str]:
        core.made.clear()
        step = partial(scheduler._step, core.step_with_batch_queue)
        assert all(step()[1] or not scheduler._slots for _ in range(times))
        return list(core.made)

    assert stepped(2) == ["planned", "planned", "ended"]
    scheduler._planner.needing_results.add("r")
    assert stepped(1) == ["planned", "ended"]  # it matters only beside a session
    scheduler._slots["r"] = "a session"
    assert stepped(3) == ["ended", "waited", "waited"]
    assert not core.async_scheduling
    del scheduler._slots["r"]
    assert stepped(2) == ["planned", "planned", "ended"]
    assert core.async_scheduling


def beside(*places: str, drafting: Sequence[str] = (), waiting: int = 0) -> Any:
    """Return a scheduler. places: of each request that runs, its session or "plain", with + if
    it has a row in the step under way. drafting: sessions that judge draft tokens there."""
    pytest.importorskip("vllm")
    from verifier.vllm_target.core.scheduler import AsyncPicoScheduler

    scheduler: Any = object.__new__(AsyncPicoScheduler)
    machine = VerifyMachine(iter(()))
    machine.latency.observe(1, 0.008)
    scheduler.running, scheduler._slots = [], {}
    for i, place in enumerate(places):
        ahead, name = place.count("+"), place.strip("+")
        request = SimpleNamespace(request_id=f"{i}", num_tokens=3, spec_token_ids=[])
        request.num_computed_tokens, request.num_output_placeholders = 2 + ahead, ahead
        scheduler.running.append(request)
        if name == "plain":
            continue
        opened = Open("m", "v", (1, 2), Sampling(), 0, 9, ())
        machine.open(name, opened, Limits(), vocabulary_size=100, now=0.0)
        admission = Admission(name, opened, 2, Limits(), LogitSettings(), 100, True)
        scheduler._slots[f"{i}"] = SessionSlot(admission, machine.session(name))
        if name in drafting:
            machine.received(name, Draft(0, 0, 0, (5, 6)), arrived=0.0)
            if ahead:
                machine.begin({name: 2}, 0.0)
    scheduler._machine, scheduler._planner = machine, StepPlanner(machine)
    scheduler.requests = {request.request_id: request for request in scheduler.running}
    scheduler._request_of = {slot.name: r for r, slot in scheduler._slots.items()}
    scheduler.engine = SimpleNamespace(batch_queue=deque())
    scheduler.waiting, scheduler.max_num_running_reqs = ["a prompt"] * waiting, 64
    scheduler.kv_holding_waiting, scheduler.deferred_waiting = [], set()
    scheduler.scheduler_config = SimpleNamespace(max_num_batched_tokens=2048, max_num_seqs=64)
    scheduler.structured_output_manager = SimpleNamespace(validate_tokens=lambda r, t: t)
    return scheduler


def test_a_request_with_a_grammar_needs_each_result_until_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = beside("plain+", "a+")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    monkeypatch.setattr(Original, "add_request", lambda scheduler, request: None)
    monkeypatch.setattr(Original, "_free_request", lambda scheduler, request: None)
    request = SimpleNamespace(request_id="r", sampling_params=None, use_structured_output=True)

    scheduler.add_request(request)
    assert scheduler._planner.needing_results == {"r"}
    scheduler._free_request(request)
    assert scheduler._planner.needing_results == set()


def test_a_step_that_is_planned_ahead_leaves_out_sessions_whose_draft_tokens_are_judged() -> (
    None
):
    scheduler = beside("plain+", "judging+", "resting+", "free", drafting=("judging", "free"))
    scheduler._next = scheduler._planner.decide(scheduler._taken_apart(), 0.0)
    scheduler.engine.batch_queue.append("the step under way")

    plan = scheduler._offer_drafts(0.0)

    assert plan.left_out == ["judging"]
    assert [request.spec_token_ids for request in scheduler.running] == [[], [], [], [5, 6]]


def test_passes_end_in_the_order_of_their_batches_and_last_from_one_end_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = beside("a+", "b", drafting="b")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    from verifier.vllm_target.core import scheduler as module

    monkeypatch.setattr(Original, "update_from_output", lambda scheduler, *step: {})
    clock = iter((9.0, 15.0))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for request in scheduler.running:
        vars(request).update(
            num_computed_tokens=3, num_stale_output_tokens=0, drop_stale_output=False,
            is_finished=lambda: False, sampling_params=None, client_index=0,
        )  # fmt: skip
    scheduler.structured_output_manager.accept_tokens = lambda request, tokens: True
    scheduler.steps, scheduler._has_run_without_grammars = 0, False

    def planned(now: float, drafts: dict[str, list[int]], *names: str) -> SimpleNamespace:
        counts = {name: 1 + len(drafts.get(name, ())) for name in names}
        output = SimpleNamespace(
            num_scheduled_tokens=counts, scheduled_spec_decode_tokens=drafts,
            total_num_scheduled_tokens=sum(counts.values()),
        )  # fmt: skip
        scheduler._planner.start(ahead=now > 1.0)
        output.picospec_requests = scheduler._begin(output, now)
        return output

    def ended(output: SimpleNamespace, **tokens: list[int]) -> dict[str, Any]:
        places = {name: i for i, name in enumerate(output.num_scheduled_tokens)}
        result = SimpleNamespace(
            req_id_to_index=places, sampled_token_ids=[*tokens.values()], logprobs=None,
            kv_connector_output=None,
        )  # fmt: skip
        (batch,) = scheduler.update_from_output(output, result).values()
        sent = [each.kv_transfer_params["picospec"] for each in batch.outputs]
        return {name: unpacked(frames[0].frame) for name, frames, _ in sent}

    first = planned(1.0, {"1": [5, 6]}, "0", "1")
    second = planned(2.0, {}, "0")
    commits = ended(first, a=[7], b=[5, 6, 8]), ended(second, a=[9])

    found = [
        {name: (c.tokens, c.accepted, c.pass_s) for name, c in each.items()} for each in commits
    ]
    assert found == [{"a": ((7,), 0, 8.0), "b": ((5, 6, 8), 2, 8.0)}, {"a": ((9,), 0, 6.0)}]
    assert commits[1]["a"].queue_s == 0.0
    assert scheduler._machine.outcome.of(8.0) < 4.0  # steps of both kinds were seen


def test_a_step_without_a_session_is_vllms_own_and_counts_when_its_result_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    from verifier.vllm_target.core.scheduler import AsyncPicoScheduler

    step = SimpleNamespace(total_num_scheduled_tokens=3)
    monkeypatch.setattr(Original, "schedule", lambda scheduler: step)
    monkeypatch.setattr(Original, "update_from_output", lambda scheduler, *step: step)
    scheduler: Any = object.__new__(AsyncPicoScheduler)  # without a machine
    scheduler.engine, scheduler._slots, scheduler.num_spec_tokens = None, {}, 9
    scheduler.steps = scheduler.asynchronous_steps = 0
    scheduler._planner = StepPlanner(VerifyMachine(iter(())))

    assert scheduler.schedule() is step
    assert scheduler.steps == 0
    assert scheduler.update_from_output(step, "result") == (step, "result")
    assert scheduler.steps == 1


class RecordingMachine(VerifyMachine):
    def __init__(self) -> None:
        super().__init__(iter(()))
        self.arrivals: list[float] = []

    def received(self, name: str, message: Pushed, *, arrived: float) -> list[Any]:
        self.arrivals.append(arrived)
        down = super().received(name, message, arrived=arrived)
        return [*down, Reject(0, 0, 0, (), 0.0)] if len(message.tokens) > 1 else down  # type: ignore[union-attr]


class Scheduler(SimpleNamespace):
    """As much of a SessionScheduler as `push` needs, with one session "s"."""

    def __init__(self) -> None:
        request = Open("m", "v", (), Sampling(), 0, 9, ())
        admission = Admission("s", request, 1, Limits(), LogitSettings(), 100)
        machine = RecordingMachine()
        machine.open("s", request, Limits(), vocabulary_size=100, now=0.0)
        self.slot = SessionSlot(admission, machine.session("s"))
        self.emitted: list[str] = []
        super().__init__(
            _machine=machine,
            _planner=StepPlanner(machine),
            _slots={"r": self.slot},
            _request_of={"s": "r"},
            requests={"r": "the request"},
            _output=lambda request, slot: "an output",
            _emit=lambda request, output: self.emitted.append(request),
        )

    def push(self, *messages: Message, session: str = "s") -> None:
        pytest.importorskip("vllm")
        from verifier.vllm_target.core.sessions import SessionScheduler

        for message in messages:
            SessionScheduler.push(self, session, packed(message), 12.5)  # type: ignore[arg-type]


def test_a_message_keeps_the_time_at_which_it_reached_the_host() -> None:
    scheduler = Scheduler()

    scheduler.push(Draft(0, 0, 0, (5,)))

    assert scheduler._machine.arrivals == [12.5]
    assert scheduler._machine.session("s").pending == 1
    assert scheduler.emitted == []  # nothing to send


def test_what_a_message_brings_about_is_sent_between_two_steps() -> None:
    scheduler = Scheduler()

    scheduler.push(Draft(0, 0, 0, (5, 6)))

    assert len(scheduler.slot.frames) == 1
    assert scheduler.emitted == ["the request"]


def test_a_batch_is_taken_without_an_answer_and_a_bug_ends_the_session_that_has_it() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreRequestType

    from verifier.vllm_target.core.sessions import SessionScheduler

    scheduler, original, pushed, aborted, sent = Scheduler(), [], [], [], []

    def push(session: str, frames: bytes, arrived: float) -> None:
        pushed.append((session, frames, arrived))
        if session == "s":
            raise KeyError("a bug")

    scheduler.push = push  # type: ignore[assignment]
    scheduler.push_batch = partial(SessionScheduler.push_batch, scheduler)
    scheduler.requests = {"r": SimpleNamespace(request_id="r")}
    scheduler.finish_requests = lambda request_id, status: aborted.append(request_id)
    scheduler._emit = lambda request, output: sent.append(output.finished)
    handle = partial(SessionScheduler._handle, scheduler, lambda *call: original.append(call))  # type: ignore[arg-type]

    handle(EngineCoreRequestType.UTILITY, [0, 0, PUSH, [[["s", b"1"], ["t", b"2"]], 12.5]])
    handle(EngineCoreRequestType.UTILITY, [0, 7, "picospec_read", []])

    assert pushed == [("s", b"1", 12.5), ("t", b"2", 12.5)]
    assert (aborted, sent) == (["r"], [True])
    assert [request[2] for _, request in original] == ["picospec_read"]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Finish("stop"), "Finish"),
        (Draft(1, 0, 0, (1000,)), "not a token"),
        (Draft(1, 0, 0, (5,), (Q_SCALE,)), "Draft.q"),
    ],
)
def test_what_no_honest_edge_sends_ends_the_session_and_is_told(
    message: Message, error: str
) -> None:
    scheduler = Scheduler()

    scheduler.push(Draft(0, 0, 0, (5,)), message)

    assert error in (scheduler.slot.error or "")
    assert scheduler.slot.over
    assert scheduler.emitted == ["the request"]
    assert scheduler._machine.session("s").pending == 1  # what came before it stays


def test_a_message_for_a_session_that_has_ended_is_dropped() -> None:
    scheduler = Scheduler()

    scheduler.push(Draft(0, 0, 0, (5,)), session="gone")

    assert scheduler._machine.arrivals == []


def test_a_grammar_of_any_request_keeps_a_step_from_being_learned_once_one_ran_without() -> (
    None
):
    pytest.importorskip("vllm")
    from verifier.vllm_target.core.scheduler import PicoScheduler

    def request(grammar: object) -> Any:
        return SimpleNamespace(sampling_params=SimpleNamespace(structured_outputs=grammar))

    requests = {"session": request(None), "plain": request("a grammar")}
    scheduler: Any = SimpleNamespace(requests=requests, _has_run_without_grammars=False)

    def is_dear(*scheduled: str) -> bool:
        step: Any = SimpleNamespace(num_scheduled_tokens=dict.fromkeys(scheduled, 1))
        return PicoScheduler._is_slowed(scheduler, step)

    assert not is_dear("session", "plain")  # there is nothing else to learn from
    assert not is_dear("session")
    assert is_dear("session", "plain")
    assert not is_dear("session", "finished meanwhile")


@pytest.mark.parametrize(
    ("waiting", "seats", "admits"), [(0, 8, False), (1, 8, True), (1, 1, False)]
)
def test_a_request_that_waits_is_admitted_if_a_seat_is_free(
    waiting: int, seats: int, admits: bool
) -> None:
    scheduler = beside("a", waiting=waiting)
    scheduler.max_num_running_reqs = seats

    assert scheduler._taken_apart().admits is admits


def test_a_prompt_is_read_in_short_parts_beside_a_held_session_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    from verifier.vllm_target.core.scheduler import PicoScheduler

    waiting_requests, prompt = SimpleNamespace(), SimpleNamespace()
    scheduler: Any = object.__new__(PicoScheduler)
    scheduler.running, scheduler.num_spec_tokens = [waiting_requests, prompt], 9
    scheduler.engine, scheduler.asynchronous_steps, scheduler.lora_config = None, 0, None
    scheduler._offer_drafts = lambda now: StepPlan({}, {}, ["s"])
    scheduler._request_of, scheduler.requests = {"s": "r"}, {"r": waiting_requests}
    scheduler._planner = StepPlanner(VerifyMachine(iter(())))
    scheduler._begin = lambda output, now: {}
    scheduler._slots, scheduler.waiting, counts = {"r": 0}, [], []
    scheduler.kv_holding_waiting, scheduler.deferred_waiting = [], set()
    scheduler.max_num_running_reqs, scheduler.max_num_scheduled_tokens = 4, 64

    def plan(original: Any) -> SimpleNamespace:
        counts.append((len(original.running), original.get_request_counts()))
        read = SimpleNamespace(resumed_req_ids=())
        return SimpleNamespace(
            total_num_scheduled_tokens=64, scheduled_cached_reqs=read, scheduled_new_reqs=[]
        )

    monkeypatch.setattr(Original, "schedule", plan)
    monkeypatch.setattr(
        Original, "get_request_counts", lambda original: (len(original.running), 0)
    )
    scheduler.schedule()

    assert counts == [(1, (2, 0))]
    assert scheduler.get_request_counts() == (2, 0)


def test_a_core_asks_once_a_step_whether_its_sessions_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM asks two or three times for each step, and each answer looks at all sessions."""
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.scheduler import Scheduler as Original

    from verifier.vllm_target.core import sessions
    from verifier.vllm_target.core.scheduler import PicoScheduler

    asked: list[int] = []
    monkeypatch.setattr(Original, "has_requests", lambda scheduler: True)
    monkeypatch.setattr(sessions, "must_step", lambda scheduler: False)
    given = Scheduler()
    monkeypatch.setattr(
        given._machine, "wait_s", lambda names, now: 0.0 if asked.append(1) is None else 1.0
    )
    scheduler: Any = object.__new__(PicoScheduler)
    request = SimpleNamespace(request_id="r", num_computed_tokens=1, num_tokens=1)
    vars(scheduler).update(
        vars(given),
        engine=SimpleNamespace(batch_queue=None),
        running=[request],
    )

    assert scheduler.has_requests()
    assert scheduler.has_requests()
    assert len(asked) == 1

    scheduler.push("s", packed(Draft(0, 0, 0, (5,))), 0.0)
    assert scheduler.has_requests()
    assert len(asked) == 2
