"""Drives the VerifyMachine with vLLM's steps: draft tokens go in at the last moment, and
Commits go out with vLLM's outputs.

A session is one vLLM request that stays RUNNING for its whole answer, so KV cache, rollback,
batching, preemption and prefix caching are vLLM's own. `schedule` puts the offered draft tokens
where vLLM's own would be, and leaves out sessions that wait for drafts. The worker judges the
rows. `update_from_output` passes the verdicts to the machine, and sends the messages it
returns.

If a step generates nothing for a request, because its first draft token was rejected and the
edge draws the recovered one, vLLM does not take back the step's tokens, so this module does.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, Self

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from speculation.judge import Judgement
from speculation.messages import UNLIKELY, TokenLogprob
from speculation.verify_machine import Verdict
from verifier.vllm_target.core.sessions import SessionScheduler, put_frames
from verifier.vllm_target.core.slot import SessionSlot
from verifier.vllm_target.core.step_limits import hidden, narrowed, unpadded
from verifier.vllm_target.core.step_planner import NO_STEP, NextStep, StepPlan
from verifier.vllm_target.verify_request import MOST_ROWS, VerifyRequest

Passed = dict[str, tuple[Request, SessionSlot]]
"""A Passed has the sessions that sampled in a step, by request id."""


class PicoScheduler(SessionScheduler):
    _plan = NO_STEP
    """What the step that vLLM plans has of sessions."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Self:
        """Make a scheduler of the kind that vLLM would choose. vLLM finds this class by name
        after it has decided whether to schedule asynchronously."""
        ahead = vllm_config.scheduler_config.async_scheduling
        return super().__new__(AsyncPicoScheduler if ahead else cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_run_without_grammars = False

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Store what vLLM's own speculation proposed after a step. A session keeps its tokens
        until its next pass, which may be steps later."""
        if not self._head:
            return
        super().update_draft_token_ids(draft_token_ids)
        for request_id in draft_token_ids.req_ids:
            slot, request = self._slots.get(request_id), self.requests.get(request_id)
            if slot is None or request is None:
                continue
            slot.proposed, request.spec_token_ids = request.spec_token_ids, []
            self._machine.proposed(slot.name, len(slot.proposed))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._planner.start(ahead=self._is_batch_under_way)
        output = self._schedule(*args, **kwargs)
        is_step = output.total_num_scheduled_tokens > 0
        self.asynchronous_steps += is_step and self._is_batch_under_way
        return output

    def _schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._slots:
            with unpadded(self):
                return super().schedule(*args, **kwargs)
        now = time.monotonic()
        self._plan = self._offer_drafts(now)
        left_out = [self._request(name) for name in self._plan.left_out]
        with hidden(self, left_out), unpadded(self):
            output = super().schedule(*args, **kwargs)
        output.picospec_requests = self._begin(output, now)
        self._plan = NO_STEP
        cached, rows = output.scheduled_cached_reqs, output.total_num_scheduled_tokens
        admitted = output.scheduled_new_reqs or cached.resumed_req_ids
        has_room = rows < self.max_num_scheduled_tokens
        self._planner.observe_admission(failed=self._admits and has_room and not admitted)
        is_empty = not (rows or self._is_batch_under_way)
        if left_out and is_empty and self._admits:
            self._preempt(left_out[-1], now)
        return output

    def _request(self, session: str) -> Request:
        return self.requests[self._request_of[session]]

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Let vLLM's own speculation propose as much as the operator asked for."""
        scheduler_output.num_spec_tokens_to_schedule = self._head
        super()._update_after_schedule(scheduler_output)

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> Any:
        """Return the masks of a step's grammars, without rows that its draft tokens lack."""
        bitmask = super().get_grammar_bitmask(scheduler_output)
        if bitmask is not None:
            drafts = scheduler_output.scheduled_spec_decode_tokens
            names = bitmask.structured_output_request_ids
            counts = [len(drafts.get(name, ())) for name in names]
            room = 1 + self.vllm_config.num_speculative_tokens
            bitmask.grammar_bitmask = narrowed(bitmask.grammar_bitmask, counts, room)
        return bitmask

    def get_request_counts(self) -> tuple[int, int]:
        """Return the counts with sessions that are left out, which vLLM does not see, as
        running: beside any other request it reads a prompt in shorter parts
        (long_prefill_token_threshold)."""
        running, waiting = super().get_request_counts()
        return running + len(self._plan.left_out), waiting

    def _is_slowed(self, output: SchedulerOutput) -> bool:
        """Return True if grammars may have made this step longer than others. A client can make
        a grammar arbitrarily slow: if such steps were learned, all sessions would get fewer
        rows. Until one step has run without a grammar, there is nothing else to learn from."""
        requests = map(self.requests.get, output.num_scheduled_tokens)
        params = (request.sampling_params for request in requests if request)
        with_grammar = any(each and each.structured_outputs for each in params)
        self._has_run_without_grammars |= not with_grammar
        return with_grammar and self._has_run_without_grammars

    def _preempt(self, session: Request, now: float) -> None:
        """Preempt a session that waits for drafts for requests that wait for KV, because vLLM
        preempts only what it sees running. The session queues behind them, and then reads its
        text again."""
        self.running.remove(session)
        self._preempt_request(session, now)
        self.waiting.remove_request(session)
        self.waiting.add_request(session)

    def _offer_drafts(self, now: float) -> StepPlan:
        """Give each session its draft tokens for this step; return the plan."""
        step = self._next or NextStep(self._taken_apart())
        config = self.scheduler_config
        most = max(MOST_ROWS, config.max_num_seqs)
        rows = min(config.max_num_batched_tokens, most)
        for name in (*step.running.under_way, *step.running.free):
            request = self._request(name)
            rows -= len(self._slots[request.request_id].missing(request.num_tokens))
        plan = self._planner.plan(step, now, rows=rows, ahead=self._is_batch_under_way)
        for name, draft in plan.drafts.items():
            request = self._request(name)
            slot = self._slots[request.request_id]
            if head := plan.heads.get(name):
                request.spec_token_ids = slot.proposed[:head]
                continue
            tokens = [*slot.missing(request.num_tokens), *draft]
            valid = self.structured_output_manager.validate_tokens(request, tokens)
            request.spec_token_ids = list(valid)
        return plan

    def _begin(self, output: SchedulerOutput, now: float) -> dict[str, VerifyRequest]:
        """Begin the passes of the sessions whose last row is in this step. Return for each
        request what the worker needs to judge it."""
        sampled, taken, heads = [], {}, {}
        requests: dict[str, VerifyRequest] = {}
        for request_id in output.num_scheduled_tokens:
            slot, request = self._slots.get(request_id), self.requests[request_id]
            if slot is None or request.num_computed_tokens < request.num_tokens:
                continue
            initial = slot.take_initial_output()
            if not self.structured_output_manager.accept_tokens(request, initial):
                slot.error = "Open.committed: the grammar forbids these tokens"
            missing = slot.missing(request.num_tokens)
            injected = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
            if slot.may_run_asynchronously and not injected:
                start = request.num_computed_tokens - slot.admission.prompt_tokens
                requests[request_id] = slot.fill_in(start)
                continue
            sampled.append((request_id, slot, missing))
            if slot.name in self._plan.heads:
                taken[slot.name], heads[slot.name] = 0, injected
            elif slot.may_begin(missing, injected):
                taken[slot.name] = injected - len(missing)
        plan = self._planner.begin(taken, now, heads)
        return requests | {
            request_id: slot.verify_request(plan.passes.get(slot.name), missing)
            for request_id, slot, missing in sampled
        }

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self.steps += scheduler_output.total_num_scheduled_tokens > 0
        self._planner.ended(time.monotonic())
        requests_by_id: dict[str, VerifyRequest] | None
        requests_by_id = getattr(scheduler_output, "picospec_requests", None)
        if requests_by_id is None:  # planned without a session
            return super().update_from_output(scheduler_output, model_runner_output)
        judged: dict[str, Judgement] = getattr(model_runner_output, "picospec_judged", {})
        loads = model_runner_output.kv_connector_output
        unloaded = loads.invalid_block_ids if loads else set[int]()
        passed: Passed = {
            request_id: (request, slot)
            for request_id in requests_by_id
            if (request := self.requests.get(request_id)) and not request.is_finished()
            if (slot := self._slots.get(request_id))
            if not unloaded or self._has_kv_beside(unloaded, request_id)
        }
        verdicts = {}
        for request_id, (request, slot) in passed.items():
            index = model_runner_output.req_id_to_index[request_id]
            generated = model_runner_output.sampled_token_ids[index]
            if request.num_stale_output_tokens and request.drop_stale_output:
                generated = []  # vLLM has preempted it, and will generate them again
            else:
                _correct(request, requests_by_id[request_id], generated)
            if requests_by_id[request_id].rule is not None:
                logprobs = _logprobs(model_runner_output, request, index, len(generated))
                if (request_judgement := judged.get(request_id)) is None:  # all tokens count
                    request_judgement = Judgement(
                        tuple(generated), accepted=max(0, len(generated) - 1)
                    )
                verdicts[slot.name] = Verdict(
                    request_judgement.after(requests_by_id[request_id].known), logprobs
                )
        rows = scheduler_output.total_num_scheduled_tokens
        decoded = _decoded(scheduler_output)
        plan, down = self._planner.ran(
            verdicts,
            decoded=decoded,
            with_prompt=decoded < rows,
            with_drafts=bool(scheduler_output.scheduled_spec_decode_tokens),
            says_nothing=self._is_slowed(scheduler_output),
        )
        for _, slot in passed.values():
            if slot.name in down:
                judged_pass = plan.passes[slot.name]
                drafts = len(judged_pass.draft) + judged_pass.head
                slot.send(down[slot.name], judged=drafts, rows=rows)
                rows = 0
        batches = super().update_from_output(scheduler_output, model_runner_output)
        self._attach(batches, passed)
        return batches

    def _has_kv_beside(self, unloaded: set[int], request_id: str) -> bool:
        """Return True if a request has none of the blocks that a KV connector failed to load.
        vLLM fails one that has, and what its step generated is void."""
        blocks = chain(*self.kv_cache_manager.get_block_ids(request_id))
        return unloaded.isdisjoint(blocks)

    def _attach(self, batches: dict[int, EngineCoreOutputs], passed: Passed) -> None:
        """Attach the frames to the requests' outputs; requests without an output get one."""
        for batch in batches.values():
            for output in batch.outputs:
                frames = passed.pop(output.request_id, None)
                if frames is not None:
                    put_frames(output, frames[1])
                    self._end(*frames, output)
        for request, slot in passed.values():
            batch = batches.setdefault(request.client_index, EngineCoreOutputs())
            batch.outputs.append(self._output(request, slot))


class AsyncPicoScheduler(PicoScheduler, AsyncScheduler):
    """Does the same in an engine that schedules asynchronously while it has no session."""


def _correct(request: Request, verify_request: VerifyRequest, generated: list[int]) -> None:
    """Correct vLLM's record of a step for a session, in place."""
    if verify_request.rule is None:
        generated.clear()
    if not generated:
        request.num_computed_tokens -= len(verify_request.draft) + 1
        request.num_output_placeholders = 0  # no other step of a session is under way


def _decoded(output: SchedulerOutput) -> int:
    """Return the rows of a step that belong to no part of a prompt."""
    drafts = output.scheduled_spec_decode_tokens
    return sum(
        count
        for request_id, count in output.num_scheduled_tokens.items()
        if count == 1 + len(drafts.get(request_id, ()))
    )


def _logprobs(
    output: ModelRunnerOutput, request: Request, index: int, count: int
) -> list[TokenLogprob] | None:
    """Return the log-probabilities of `count` new tokens; None if the request wants none.

    index: the request's row in the step. vLLM returns as many alternatives for every request as
    the most that one of them wants.
    """
    wanted = request.sampling_params and request.sampling_params.num_logprobs
    if wanted is None or output.logprobs is None:
        return None
    lists = output.logprobs.slice_request(index, count)
    kept = slice(0, 1 + wanted)
    tokens = lists.logprob_token_ids[:, kept].tolist()
    values = np.maximum(lists.logprobs[:, kept], UNLIKELY).tolist()
    return [
        TokenLogprob(p[0], tuple(zip(ids[1:], p[1:], strict=True)))
        for ids, p in zip(tokens, values, strict=True)
    ]
