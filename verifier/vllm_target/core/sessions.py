"""Extends vLLM's scheduler with sessions: opens and closes them, receives, sends and sleeps.

A session is one vLLM request. Between steps it receives messages by calls into the core; a
message that it sends at once leaves in an output of its own. scheduler.py has the steps,
and step_planner.py what they have of sessions.
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf
from queue import Empty
from random import SystemRandom
from typing import Any, Final

import structlog
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

from speculation.answer_cache import Owner
from speculation.errors import RemoteProtocolError
from speculation.messages import Pushed
from speculation.verify_machine import VerifyMachine
from verifier.vllm_target import patcher
from verifier.vllm_target.core.slot import SessionSlot
from verifier.vllm_target.core.step_planner import NextStep, Running, StepPlanner
from verifier.vllm_target.ipc_messages import FIELD, PUSH, Admission, Batch
from verifier.vllm_target.packing import unpacked
from verifier.vllm_target.patches import Original
from verifier.vllm_target.runner_choice import RunnerChoice

_QUEUES: Final = ("waiting", "kv_holding_waiting")


class SessionScheduler(Scheduler):
    running: list[Request]
    _next: NextStep | None = None
    """What is decided of the next step while the core steps; None if no step is under way."""

    asks_for_proposals = False
    """A core without a head does not ask its workers for draft tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patcher.apply("calls")
        self.engine: EngineCore | None = None
        self._slots: dict[str, SessionSlot] = {}  # by request id
        self._request_of: dict[str, str] = {}  # by session name
        self._machine = VerifyMachine(iter(SystemRandom().random, None))
        self._planner = StepPlanner(self._machine)
        self._wake_at = inf
        """The core may sleep until then, on the monotonic clock."""

        choice = RunnerChoice.of(self.vllm_config)
        self._head = choice.head if choice else 0
        self.steps = 0  # steps whose result is known
        self.asynchronous_steps = 0  # steps planned before the result of the last one was known
        self.preemptions = 0

    def add_request(self, request: Request) -> None:
        """Open the session that the request carries, or reject one whose name is taken."""
        self._planner.observe_change()
        extra = (request.sampling_params and request.sampling_params.extra_args) or {}
        packed = extra.get(FIELD)
        if not isinstance(packed, bytes) or self._slots.get(request.request_id):
            super().add_request(request)  # clients may put anything into `extra`
            if request.use_structured_output:
                self._planner.needing_results.add(request.request_id)
            return
        admission = Admission.unpack(packed)
        if admission.session in self._request_of:
            output = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT)
            taken = "a session of this name is running"
            output.kv_transfer_params = {FIELD: [admission.session, [], taken]}
            self._emit(request, output)
            return
        super().add_request(request)
        now, size = time.monotonic(), admission.vocabulary_size
        prompt = (request.prompt_token_ids or [])[: admission.prompt_tokens]
        if admission.drawn_by_vllm:
            _move_output(request, admission.prompt_tokens)
        opened = replace(admission.request, prompt=tuple(prompt))
        self._machine.open(
            admission.session,
            opened,
            admission.limits,
            vocabulary_size=size,
            now=now,
            owner=admission.owner,
        )
        slot = SessionSlot(admission, self._machine.session(admission.session), prompt)
        self._slots[request.request_id] = slot
        self._request_of[slot.name] = request.request_id
        may_run_asynchronously = (
            slot.may_run_asynchronously and not request.use_structured_output
        )
        if (
            not may_run_asynchronously
            or self._head
            or self.parallel_config.pipeline_parallel_size > 1
        ):
            self._planner.needing_results.add(request.request_id)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._planner.observe_change()
        self._planner.needing_results.discard(request.request_id)
        if slot := self._slots.pop(request.request_id, None):
            self._planner.observe_message()
            del self._request_of[slot.name]
            self._machine.close(slot.name)
        return super()._free_request(request, *args, **kwargs)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.preemptions += 1
        self._planner.observe_change()
        if slot := self._slots.get(request.request_id):
            self._machine.proposed(slot.name, 0)
        super()._preempt_request(request, *args, **kwargs)

    def attach(self, engine: EngineCore) -> bool:
        """Let the scheduler wake this core and send through it between steps. Return False if
        this vLLM cannot. Each of vLLM's API servers calls it."""
        first, self.engine = self.engine is None, engine
        if not (hasattr(engine, "input_queue") and hasattr(engine, "output_queue")):
            return False
        if first:
            patcher.apply("core", ours=self, engine=engine)
            if not self._head:
                patcher.apply("core without a head", ours=self, engine=engine)
            if engine.batch_queue is not None:
                patcher.apply("core with batches", ours=self, engine=engine)
        return True

    def _step(self, original: Original) -> tuple[dict[int, EngineCoreOutputs] | None, bool]:
        """Make the core's step. original: vLLM's own, which keeps a queue of batches."""
        if (engine := self.engine) is None:
            return original()
        if not self._slots:
            engine.async_scheduling = True
            return original()
        if self._is_batch_under_way:
            self._next = self._planner.decide(self._taken_apart(), time.monotonic())
        elif self._planner.needing_results:
            engine.async_scheduling = False  # the core asks for the head's tokens after it
            return engine.step()
        try:
            outputs, executed = original()
        finally:
            ends, self._next = self._lets_batch_end, None
        return outputs, executed or ends  # else the core sleeps for a millisecond

    @property
    def _is_batch_under_way(self) -> bool:
        return bool(self.engine and self.engine.batch_queue)

    @property
    def _lets_batch_end(self) -> bool:
        return self._next is not None and self._next.waits

    def _taken_apart(self) -> Running:
        under_way, free = list[str](), list[str]()
        for request in self.running:
            slot = self._slots.get(request.request_id)
            if slot and has_read_its_text(request):
                (under_way if request.num_output_placeholders else free).append(slot.name)
        others = len(self.running) - len(under_way) - len(free)
        return Running(under_way, free, others, self._admits)

    @property
    def _admits(self) -> bool:
        """True if a seat is free and a request waits for it, and not for something else: vLLM
        has deferred those that wait for an adapter's place or for their grammar."""
        waiting = len(self.waiting) + len(self.kv_holding_waiting)
        has_seat = len(self.running) < self.max_num_running_reqs
        return has_seat and waiting > len(self.deferred_waiting)

    def _handle(self, original: Original, kind: EngineCoreRequestType, request: Any) -> None:
        """Take messages for sessions here: vLLM would read the signature of a method for each
        of its calls, and answer."""
        if kind is EngineCoreRequestType.UTILITY and request[2] == PUSH:
            return self.push_batch(*request[3])
        original(kind, request)

    def _get(self, original: Original, block: bool = True, timeout: float | None = None) -> Any:
        return get_in_time(original, self._wake_at, block, timeout)

    def push_batch(self, batch: Batch, arrived: float) -> None:
        """Hand messages to their sessions. One that cannot take them, which is our bug, ends:
        it has no answer that could say so, and the core must not end with it."""
        for session, frame in batch:
            try:
                self.push(session, frame, arrived)
            except Exception:
                structlog.get_logger("verifier").exception("a message ended its session")
                if request_id := self._request_of.get(session):
                    request = self.requests[request_id]
                    self.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
                    over = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ABORT)
                    self._emit(request, over)

    def push(self, session: str, frame: bytes, arrived: float) -> None:
        """Hand a packed message to a session. An error in it becomes its `error`, which is sent
        and ends the session.

        arrived: the time when it reached this process. A step may have passed since then.
        """
        if (request_id := self._request_of.get(session)) is None:
            return
        slot = self._slots[request_id]
        self._planner.observe_message()
        try:
            message = unpacked(frame)
            if not isinstance(message, Pushed):
                raise RemoteProtocolError(f"{type(message).__name__}: not from an edge")
            slot.send(self._machine.received(session, message, arrived=arrived))
        except RemoteProtocolError as error:
            slot.error = str(error)
        if slot.error or slot.frames:
            request = self.requests[request_id]
            self._emit(request, self._output(request, slot))

    def forget(self, tenant: str, user: str) -> None:
        """Forget the answers that are kept for an owner."""
        self._machine.forget(Owner(tenant, user))

    def learned_statistics(self) -> dict[str, object]:
        """Return what the machine has learned."""
        return self._machine.learned_statistics()

    def figures(self) -> dict[str, int]:
        """Return counts that show whether the core makes progress."""
        return {
            "steps": self.steps,
            "asynchronous_steps": self.asynchronous_steps,
            "sessions": len(self._slots),
            "preemptions": self.preemptions,
        }

    def _output(self, request: Request, slot: SessionSlot) -> EngineCoreOutput:
        """Return an output without tokens that carries the session's latest frames."""
        output = EngineCoreOutput(request_id=request.request_id, new_token_ids=[])
        put_frames(output, slot)
        self._end(request, slot, output)
        return output

    def _end(self, request: Request, slot: SessionSlot, output: EngineCoreOutput) -> None:
        """End a request of vLLM's that still runs when its session is over."""
        if slot.over and not request.is_finished():
            self.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
            output.finish_reason = FinishReason.ABORT

    def _emit(self, request: Request, output: EngineCoreOutput) -> None:
        """Send an output between steps."""
        if self.engine is not None:
            batch = EngineCoreOutputs(outputs=[output])
            self.engine.output_queue.put_nowait((request.client_index, batch))

    def has_requests(self) -> bool:
        """Tell the core whether to step. It sleeps while all sessions wait for drafts."""
        self._wake_at = inf
        if self._lets_batch_end:
            return False
        if not super().has_requests():
            self._planner.observe_sleep()
            return False
        if self._planner.is_due or not self._slots or self.engine is None or must_step(self):
            return True
        if self._is_batch_under_way:  # `_step` has decided
            return True
        slots = [self._slots.get(request.request_id) for request in self.running]
        sessions = [slot.name for slot in slots if slot]
        if len(sessions) < len(slots) or not all(map(has_read_its_text, self.running)):
            return True
        now = time.monotonic()
        wait_s = self._planner.wait_s(sessions, now)
        if wait_s <= 0.0:
            return True
        self._wake_at = now + wait_s
        self._planner.observe_sleep()
        return False


def get_in_time(
    original: Original, wake_at: float, block: bool = True, timeout: float | None = None
) -> Any:
    """Return the next item of vLLM's input queue, or vLLM's own message for waking up if none
    comes until `wake_at`. The core asks the scheduler for work before each wait."""
    if not block or timeout is not None or wake_at == inf:
        return original(block, timeout)
    try:
        return original(True, max(0.0, wake_at - time.monotonic()))
    except Empty:
        return EngineCoreRequestType.WAKEUP, None


def put_stamped(original: Original, item: tuple[EngineCoreRequestType, Any]) -> None:
    """Put an item into vLLM's input queue, with the time appended if it has messages for
    sessions. The API server cannot do it, because it may be on another host with another clock.
    A step may pass until the core reads the queue."""
    kind, request = item
    if kind is EngineCoreRequestType.UTILITY and request[2] == PUSH:
        request[3].append(time.monotonic())
    original(item)


def _move_output(request: Request, prompt_tokens: int) -> None:
    """Move the tokens after the session's prompt to vLLM's output, as after a preemption:
    vLLM's penalties and min_tokens tell prompt and output apart."""
    text = request.prompt_token_ids or []
    request.prompt_token_ids = text[:prompt_tokens]
    request._output_token_ids.extend(text[prompt_tokens:])


def has_read_its_text(request: Request) -> bool:
    """Return True if all tokens of a request but the last are in the KV cache."""
    return bool(request.num_computed_tokens >= request.num_tokens - 1)


def put_frames(output: EngineCoreOutput, slot: SessionSlot) -> None:
    """Put into an output what its session sends: [session, frames, error].

    vLLM uses this field for KV connectors, whose entries stay. The frames contain the
    log-probabilities, so vLLM need not carry them too.
    """
    frames, slot.frames = slot.frames, []
    parameters: dict[str, Any] = output.kv_transfer_params or {}
    output.kv_transfer_params = {**parameters, FIELD: [slot.name, frames, slot.error]}
    output.new_logprobs = None


def must_step(scheduler: Scheduler) -> bool:
    """Return True if there is work that requests waiting for drafts must not delay."""
    return bool(
        scheduler.finished_req_ids
        or scheduler.connector is not None
        or not scheduler.running
        or any(len(getattr(scheduler, name, ())) for name in _QUEUES)
    )
