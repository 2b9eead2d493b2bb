"""vLLM's scheduler as the home of sessions: they come, hear, speak, sleep and go.

A session is one vLLM request. Between steps it hears from the service by calls into the core;
what it says at once goes out on an output of its own. The steps are scheduler.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import SystemRandom
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

from speculation.protocol.errors import RemoteProtocolError
from speculation.verifying.row_allocation import PassLatency
from verifier.vllm_target.admission import FIELD, Admission
from verifier.vllm_target.core import calls as _calls  # noqa: F401 - adds the core's methods
from verifier.vllm_target.core import outputs
from verifier.vllm_target.core.hooks import must_step
from verifier.vllm_target.core.session_slot import OutgoingFrame, Seat
from verifier.vllm_target.core.slot_table import SlotTable
from verifier.vllm_target.core.timer import Timer
from verifier.vllm_target.watch import die_with_parent


class SessionScheduler(Scheduler):
    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine: EngineCore | None = None
        self._seats = SlotTable()
        self._times = PassLatency()
        self._chance = SystemRandom()
        self._alarm = Timer(self._wake)
        self.steps = 0
        self.preemptions = 0
        die_with_parent()

    # --- sessions come and go with vLLM's requests

    def add_request(self, request: Request) -> None:
        """Seat the session that the request carries."""
        super().add_request(request)
        extra = (request.sampling_params and request.sampling_params.extra_args) or {}
        if FIELD in extra:
            admission = Admission.unpack(extra[FIELD])
            self._seats.seat(request.request_id, admission, time.monotonic())

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._seats.leave(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        self.preemptions += 1
        super()._preempt_request(*args, **kwargs)

    # --- messages from the service

    def push(self, session: str, frames: bytes, arrived: float) -> str | None:
        """Hand messages to a session; return what is wrong with them: that ends the session.

        arrived: when they reached the host, by its monotonic clock, which all its processes
        share. A step may have passed since.
        """
        found = self._seats.find(session)
        if found is None:
            return None
        request, seat = self.requests[found[0]], found[1]
        try:
            spoke = seat.receive(frames, arrived, self._uniforms())
        except RemoteProtocolError as error:
            seat.complaint = str(error)
        if seat.complaint or spoke:
            self._emit(request, self._told(request, seat))
        return seat.complaint

    def recall(self, session: str, first: int) -> list[OutgoingFrame]:
        """Return what a session said, from its `first`-th frame on."""
        return self._seats.recall(session, first)

    def figures(self) -> dict[str, int]:
        """Return counts for tests and metrics."""
        return {
            "steps": self.steps,
            "sessions": len(self._seats),
            "preemptions": self.preemptions,
        }

    # --- what sessions say

    def _told(self, request: Request, seat: Seat) -> EngineCoreOutput:
        """Return an output of our own."""
        output = outputs.make(request, seat)
        self._end(request, seat, output)
        return output

    def _end(self, request: Request, seat: Seat, output: EngineCoreOutput) -> None:
        """End a request that goes on when its session is over."""
        if (seat.machine.finished or seat.complaint) and not request.is_finished():
            self.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
            output.finish_reason = FinishReason.ABORT

    def _emit(self, request: Request, output: EngineCoreOutput) -> None:
        """Send an output between steps."""
        if self.engine is not None:
            batch = EngineCoreOutputs(outputs=[output])
            self.engine.output_queue.put_nowait((request.client_index, batch))

    def _uniforms(self) -> Iterator[float]:
        return iter(self._chance.random, None)

    # --- sleep while every session is held

    def has_requests(self) -> bool:
        """Tell the core whether to step; it sleeps while all sessions are held."""
        if not super().has_requests():
            return False
        now = time.monotonic()
        deadline = float("inf")
        if self.engine is None or must_step(self):
            return True
        for request in self.running:
            seat = self._seats.of(request.request_id)
            wait_s = 0.0 if seat is None else seat.hold_s(now, self._times)
            if wait_s <= 0.0 or request.num_computed_tokens < request.num_tokens - 1:
                return True
            deadline = min(deadline, now + wait_s)
        self._alarm.set(deadline, now)
        return False

    def _wake(self) -> None:
        """Wake the core by the message it knows for that."""
        if self.engine is not None:
            self.engine.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
