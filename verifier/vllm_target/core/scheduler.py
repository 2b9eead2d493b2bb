"""vLLM's scheduler with sessions: drafts in at the last moment, verdicts out with the outputs.

A session is one vLLM request that stays RUNNING for its whole answer, so KV cache, rollback,
batching, preemption and prefix caching are vLLM's own. Each step:

    schedule            each session that may run puts its drafts where vLLM's own would be;
                        held sessions leave `running` for this one call and keep KV and slot
    (the worker)        judges the rows (worker.py)
    update_from_output  each verdict goes to the session's machine; what that says rides on the
                        request's output

Where a step says nothing for a request (its first draft was rejected, and the edge draws the
replacement), vLLM does not take back the step's tokens: we do.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from speculation.sampling.judging import Judgement
from speculation.verifying.pass_policy import share_rows, starters
from verifier.vllm_target.core import outputs
from verifier.vllm_target.core.hooks import aside, no_wider_than_asked
from verifier.vllm_target.core.session_scheduler import SessionScheduler
from verifier.vllm_target.core.session_slot import Seat
from verifier.vllm_target.verify_request import VerifyRequest


class PicoScheduler(SessionScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started = 0.0

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Ignore the null proposer: drafts come from the edge."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        now = time.monotonic()
        held = self._offer_drafts(now)
        with aside(self, held), no_wider_than_asked(self):
            output = super().schedule(*args, **kwargs)
        output.picospec_requests = self._orders(output)
        stuck = not output.total_num_scheduled_tokens and self.waiting
        if held and stuck and len(self.running) < self.max_num_running_reqs:
            self._make_way(held[-1], now)
        self._started = now
        self.steps += output.total_num_scheduled_tokens > 0
        return output

    def _make_way(self, held: Request, now: float) -> None:
        """Take a held session's KV for those that wait for room: vLLM preempts only what it
        sees running. The session waits behind them, and then reads its text again."""
        self.running.remove(held)
        self._preempt_request(held, now)
        self.waiting.remove_request(held)
        self.waiting.add_request(held)

    def _offer_drafts(self, now: float) -> list[Request]:
        """Give each session its drafts for this step; return those that are held."""
        seated = [
            (request, seat)
            for request in self.running
            if (seat := self._seats.of(request.request_id)) is not None
            and request.num_computed_tokens >= request.num_tokens - 1
        ]
        going = set(starters([seat.hold_s(now, self._times) for _, seat in seated]))
        ready = [pair for i, pair in enumerate(seated) if i in going]
        held = [request for i, (request, _) in enumerate(seated) if i not in going]
        counts = share_rows(
            [seat.machine for _, seat in ready],
            self._times,
            most=self.scheduler_config.max_num_batched_tokens - len(ready),  # fill `never`
        )
        for (request, seat), most in zip(ready, counts, strict=True):
            owed = seat.owed(request.num_output_tokens)
            drafts = [*(() if owed is None else (owed,)), *seat.rehearse(most)]
            valid = self.structured_output_manager.validate_tokens(request, drafts)
            request.spec_token_ids = list(valid)
        return held

    def _orders(self, output: SchedulerOutput) -> dict[str, VerifyRequest]:
        """Begin the passes of the sessions whose last row is in this step."""
        requests = {}
        for request_id in output.num_scheduled_tokens:
            seat, request = self._seats.of(request_id), self.requests[request_id]
            if seat is None or request.num_computed_tokens < request.num_tokens:
                continue
            injected = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
            requests[request_id] = seat.begin(
                request.num_output_tokens, injected, self._uniforms()
            )
        return requests

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        now = time.monotonic()
        requests: dict[str, VerifyRequest] = getattr(scheduler_output, "picospec_requests", {})
        judged: dict[str, Judgement] = getattr(model_runner_output, "picospec_judged", {})
        self._observe(scheduler_output, now)
        passed = {}
        for request_id, order in requests.items():
            request, seat = self.requests.get(request_id), self._seats.of(request_id)
            if request is None or seat is None or request.is_finished():
                continue
            passed[request_id] = (request, seat)
            index = model_runner_output.req_id_to_index[request_id]
            said = model_runner_output.sampled_token_ids[index]
            if order.silent:
                said[:] = [] if order.forced is None else [order.forced]
            if not said:
                request.num_computed_tokens -= order.injected + 1
            if not order.silent:
                seat.resolve(
                    judged[request_id],
                    started=self._started,
                    now=now,
                    rows=scheduler_output.total_num_scheduled_tokens * (len(passed) == 1),
                    logprobs=outputs.logprobs(
                        model_runner_output,
                        request,
                        index,
                        len(said),
                    ),
                    u=self._uniforms(),
                )
        batches = super().update_from_output(scheduler_output, model_runner_output)
        self._attach(batches, passed)
        return batches

    def _observe(self, output: SchedulerOutput, now: float) -> None:
        """Learn T(rows) from steps that only decode."""
        counts, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
        if counts and all(n == 1 + len(drafts.get(r, ())) for r, n in counts.items()):
            self._times.saw(sum(counts.values()), now - self._started)

    def _attach(
        self,
        batches: dict[int, EngineCoreOutputs],
        passed: dict[str, tuple[Request, Seat]],
    ) -> None:
        """Put what was said on the requests' outputs, made where vLLM has none."""
        for batch in batches.values():
            for output in batch.outputs:
                found = passed.pop(output.request_id, None)
                if found is not None:
                    outputs.attach(output, found[1])
                    self._end(*found, output)
        for request, seat in passed.values():
            outputs.add(batches, request, self._told(request, seat))
