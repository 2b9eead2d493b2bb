"""vLLM's scheduler with sessions: drafts in at the last moment, verdicts out with the outputs.

A session is one vLLM request that stays RUNNING for its whole answer, so KV cache, rollback,
batching, preemption and prefix caching are vLLM's own. Each step:

    schedule            each session that may run puts its drafts where vLLM's own would be;
                        held sessions leave `running` for this one call and keep KV and slot
    (the worker)        judges the rows (worker.py)
    update_from_output  each verdict goes to the session's machine; what that says rides on the
                        request's output

Where a step says nothing for a request (its first draft was refused, and the edge draws the
replacement), vLLM does not take back the step's tokens: we do.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Final

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core import EngineCore
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from speculation.budget import PassTimes, share
from speculation.errors import RemoteProtocolError
from speculation.judging import Judgement
from speculation.messages import TokenLogprob
from verifier.vllm_target.admission import FIELD, Admission
from verifier.vllm_target.orders import Order
from verifier.vllm_target.seats import Seat, Spoken
from verifier.vllm_target.watch import die_with_parent

REMEMBERED: Final = 256
"""Finished sessions whose frames can still be asked for."""

_CAPS: Final = ("max_num_running_reqs", "max_num_active_reqs")


class PicoScheduler(Scheduler):
    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine: EngineCore | None = None
        self._seats: dict[str, Seat] = {}
        self._sessions: dict[str, str] = {}
        self._past: OrderedDict[str, Seat] = OrderedDict()
        self._times = PassTimes()
        self._chance = Random()
        self._started = 0.0
        self._alarm: threading.Timer | None = None
        self._alarm_at = 0.0
        self.steps = 0
        die_with_parent()

    # --- sessions come and go with vLLM's requests

    def add_request(self, request: Request) -> None:
        """Seat the session that the request carries."""
        super().add_request(request)
        packed = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(
            FIELD
        )
        if packed is not None and request.request_id not in self._seats:
            admission = Admission.unpack(packed)
            self._seats[request.request_id] = Seat(admission, time.monotonic())
            self._sessions[admission.session] = request.request_id

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        seat = self._seats.pop(request.request_id, None)
        if seat is not None:
            self._sessions.pop(seat.admission.session, None)
            self._past[seat.admission.session] = seat
            if len(self._past) > REMEMBERED:
                self._past.popitem(last=False)
        return super()._free_request(request, *args, **kwargs)

    # --- messages from the service

    def push(self, session: str, frames: bytes) -> str | None:
        """Hand messages to a session; return what is wrong with them: that ends the session."""
        request_id = self._sessions.get(session)
        if request_id is None:
            return None
        seat, request = self._seats[request_id], self.requests[request_id]
        try:
            spoke = seat.receive(frames, time.monotonic(), self._uniforms())
        except RemoteProtocolError as error:
            seat.complaint = str(error)
        if seat.complaint or spoke:
            self._emit(self._told(request, seat))
        return seat.complaint

    def recall(self, session: str, first: int) -> list[Spoken]:
        """Return what a session said, from its `first`-th frame on."""
        request_id = self._sessions.get(session)
        seat = self._seats[request_id] if request_id else self._past.get(session)
        return seat.frames[first:] if seat is not None else []

    def figures(self) -> dict[str, int]:
        """Return counts for tests and metrics."""
        return {"steps": self.steps, "sessions": len(self._seats)}

    # --- a step

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Ignore the null proposer: drafts come from the edge."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        now = time.monotonic()
        held = self._offer_drafts(now)
        with self._aside(held):
            output = super().schedule(*args, **kwargs)
        output.picospec_orders = self._orders(output)
        self._started = now
        self.steps += output.total_num_scheduled_tokens > 0
        return output

    def _offer_drafts(self, now: float) -> list[Request]:
        """Give each session its drafts for this step; return those that are held."""
        pass_s = self._times.of(1)
        ready, held = [], []
        for request in self.running:
            seat = self._seats.get(request.request_id)
            if seat is None or request.num_computed_tokens < request.num_tokens - 1:
                continue
            if seat.hold_s(now, pass_s) > 0.0:
                held.append(request)
            else:
                ready.append((request, seat))
        counts = share(
            [seat.machine.affordable for _, seat in ready],
            [seat.machine.acceptance for _, seat in ready],
            self._times,
            most=self.scheduler_config.max_num_batched_tokens,
        )
        for (request, seat), most in zip(ready, counts, strict=True):
            owed = seat.owed(request.num_output_tokens)
            drafts = [*(() if owed is None else (owed,)), *seat.rehearse(most)]
            valid = self.structured_output_manager.validate_tokens(request, drafts)
            request.spec_token_ids = list(valid)
        return held

    @contextmanager
    def _aside(self, held: list[Request]) -> Iterator[None]:
        """Take held requests out of `running`, and their slots out of the limits."""
        if not held:
            yield
            return
        order, aside = self.running, {id(request) for request in held}
        self.running = [request for request in order if id(request) not in aside]
        caps = {name: getattr(self, name) for name in _CAPS if hasattr(self, name)}
        for name, value in caps.items():
            setattr(self, name, value - len(held))
        try:
            yield
        finally:
            for name, value in caps.items():
                setattr(self, name, value)
            left = {id(request) for request in self.running} | aside
            known = {id(request) for request in order}
            self.running = [
                *(request for request in order if id(request) in left),
                *(request for request in self.running if id(request) not in known),
            ]

    def _orders(self, output: SchedulerOutput) -> dict[str, Order]:
        """Begin the passes of the sessions whose last row is in this step."""
        orders = {}
        for request_id in output.num_scheduled_tokens:
            seat, request = self._seats.get(request_id), self.requests[request_id]
            if seat is None or request.num_computed_tokens < request.num_tokens:
                continue
            injected = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
            orders[request_id] = seat.begin(
                request.num_output_tokens, injected, self._uniforms()
            )
        return orders

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        now = time.monotonic()
        orders: dict[str, Order] = getattr(scheduler_output, "picospec_orders", {})
        judged: dict[str, Judgement] = getattr(model_runner_output, "picospec_judged", {})
        self._observe(scheduler_output, now)
        passed = {}
        for request_id, order in orders.items():
            request, seat = self.requests.get(request_id), self._seats.get(request_id)
            if request is None or seat is None or request.is_finished():
                continue
            passed[request_id] = (request, seat)
            index = model_runner_output.req_id_to_index[request_id]
            said = model_runner_output.sampled_token_ids[index]
            if not said:
                request.num_computed_tokens -= order.injected + 1
            if not order.silent:
                skip = order.forced is not None
                seat.resolve(
                    judged[request_id],
                    started=self._started,
                    now=now,
                    rows=scheduler_output.total_num_scheduled_tokens * (len(passed) == 1),
                    logprobs=_logprobs(model_runner_output, request, index, skip, len(said)),
                    u=self._uniforms(),
                )
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._attach(outputs, passed)
        return outputs

    def _observe(self, output: SchedulerOutput, now: float) -> None:
        """Learn T(rows) from steps that only decode."""
        counts, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
        if counts and all(n == 1 + len(drafts.get(r, ())) for r, n in counts.items()):
            self._times.saw(sum(counts.values()), now - self._started)

    # --- what sessions say

    def _attach(
        self,
        outputs: dict[int, EngineCoreOutputs],
        passed: dict[str, tuple[Request, Seat]],
    ) -> None:
        """Put what was said on the requests' outputs, made where vLLM has none."""
        for batch in outputs.values():
            for output in batch.outputs:
                found = passed.pop(output.request_id, None)
                if found is not None:
                    output.kv_transfer_params = _carried(output, found[1])
                    output.new_logprobs = None
        for request, seat in passed.values():
            for client, batch in self._told(request, seat).items():
                outputs.setdefault(client, EngineCoreOutputs()).outputs.extend(batch.outputs)

    def _told(self, request: Request, seat: Seat) -> dict[int, EngineCoreOutputs]:
        """Return an output that carries a seat's words outside vLLM's own outputs."""
        output = EngineCoreOutput(request_id=request.request_id, new_token_ids=[])
        output.kv_transfer_params = _carried(output, seat)
        if (seat.machine.finished or seat.complaint) and not request.is_finished():
            self.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
            output.finish_reason = FinishReason.ABORT
        return {request.client_index: EngineCoreOutputs(outputs=[output])}

    def _emit(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send outputs between steps."""
        if self.engine is not None:
            for item in outputs.items():
                self.engine.output_queue.put_nowait(item)

    def _uniforms(self) -> Iterator[float]:
        return iter(self._chance.random, None)

    # --- sleep while every session is held

    def has_requests(self) -> bool:
        """Tell the core whether to step; it sleeps while all sessions are held."""
        if not super().has_requests():
            return False
        now, pass_s = time.monotonic(), self._times.of(1)
        deadline = float("inf")
        if self.engine is None or self._must_step():
            return True
        for request in self.running:
            seat = self._seats.get(request.request_id)
            wait_s = 0.0 if seat is None else seat.hold_s(now, pass_s)
            if wait_s <= 0.0 or request.num_computed_tokens < request.num_tokens - 1:
                return True
            deadline = min(deadline, now + wait_s)
        self._wake_at(deadline, now)
        return False

    def _must_step(self) -> bool:
        """Tell whether vLLM has work that no session's hold may delay."""
        queues = ("waiting", "kv_holding_waiting", "skipped_waiting")
        return bool(
            self.finished_req_ids
            or self.connector is not None
            or not self.running
            or any(len(getattr(self, name, ())) for name in queues)
        )

    def _wake_at(self, deadline: float, now: float) -> None:
        """Wake the core at `deadline`, by the message it knows for that."""
        if deadline == float("inf"):
            return
        if self._alarm is not None and self._alarm.is_alive():
            if self._alarm_at <= deadline:
                return
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = threading.Timer(deadline - now + 1e-4, self._wake)
        self._alarm.daemon = True
        self._alarm.start()

    def _wake(self) -> None:
        if self.engine is not None:
            self.engine.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))


def _carried(output: EngineCoreOutput, seat: Seat) -> dict[str, Any]:
    first, frames = seat.recent
    return {**(output.kv_transfer_params or {}), FIELD: [first, frames, seat.complaint]}


def _logprobs(
    output: ModelRunnerOutput, request: Request, index: int, skip: bool, count: int
) -> list[TokenLogprob] | None:
    """Return the log-probabilities of the tokens said, after `skip` forced ones."""
    wanted = request.sampling_params and request.sampling_params.num_logprobs
    if wanted is None or output.logprobs is None:
        return None
    lists = output.logprobs.slice_request(index, count)
    rows = zip(lists.logprob_token_ids.tolist(), lists.logprobs.tolist(), strict=True)
    return [
        TokenLogprob(values[0], tuple(zip(tokens[1:], values[1:], strict=True)))
        for tokens, values in list(rows)[skip:]
    ]


def _attach(core: EngineCore) -> bool:
    """Let the scheduler wake the core and speak between steps; False if this vLLM cannot."""
    core.scheduler.engine = core
    return hasattr(core, "input_queue") and hasattr(core, "output_queue")


EngineCore.picospec_attach = _attach
EngineCore.picospec_push = lambda core, session, data: core.scheduler.push(session, data)
EngineCore.picospec_recall = lambda core, session, first: core.scheduler.recall(session, first)
EngineCore.picospec_figures = lambda core: core.scheduler.figures()
