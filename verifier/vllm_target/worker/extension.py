"""The seam in vLLM's worker: the sampler is asked for rows, and our judge answers.

vLLM runs its whole logits pipeline (grammar, penalties, minimum length) for verify rows and for
the row after them. Both are taken where temperature and cuts would follow, with vLLM's own set
to neutral; the judge applies them itself, alike for every kind of row. This leaves unused what
this vLLM gets wrong on CPUs: `expand_batch_to_tokens` returns uninitialised memory, and top-k
fails on a step without verify rows. A test notices when upstream mends the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler

from gateway.hosting.parent_death import die_with_parent
from speculation.sampling.judging import Judgement
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.judging import judge

PLACEHOLDER = -1


def _never_compile(module: str, name: str) -> None:
    """Use a function as it was written: compiling it at the first request that wants
    log-probabilities stops every session of a CPU host for up to a minute."""
    holder = import_module(module)
    compiled = getattr(holder, name, None)
    setattr(holder, name, getattr(compiled, "_torchdynamo_orig_callable", compiled))


@dataclass(slots=True)
class Step:
    """One step's requests, and what became of them."""

    requests: dict[str, VerifyRequest] = field(default_factory=dict)
    judged: dict[str, Judgement] = field(default_factory=dict)
    last_rows: Tensor | None = None
    """float32[requests, V]: of each request, the row after its drafts."""


class PicoWorkerExtension:
    """Mixed into vLLM's worker on any platform; `picospec_install` is called once, by RPC."""

    model_runner: Any

    def picospec_install(self) -> str:
        """Put the judge in place; return the runner's name."""
        runner = self.model_runner
        if not hasattr(runner, "picospec_seam"):
            runner.picospec_seam = Seam(runner)
            die_with_parent()
        return type(runner).__name__


class Seam:
    """Wraps the runner's step and the two samplers. Without requests, vLLM's own code runs."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._step = Step()
        sampler = runner.sampler.topk_topp_sampler
        runner.execute_model = self._taking_orders(runner.execute_model)
        runner.sample_tokens = self._answering(runner.sample_tokens)
        sampler.forward = self._keeping_last_rows(sampler.forward)
        rejection_sampler.apply_sampling_constraints = self._leaving_alone(
            rejection_sampler.apply_sampling_constraints
        )
        rejection_sampler.rejection_sample = self._judging(rejection_sampler.rejection_sample)
        if runner.device.type == "cpu":
            _never_compile("vllm.v1.sample.sampler", "batched_count_greater_than")

    def _taking_orders(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._step = Step(getattr(scheduler_output, "picospec_orders", None) or {})
            return stock(scheduler_output, *args, **kwargs)

        return execute_model

    def _answering(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def sample_tokens(*args: Any, **kwargs: Any) -> Any:
            output = stock(*args, **kwargs)
            if self._step.requests and output is not None:
                output.picospec_judged = self._step.judged
            self._step = Step()
            return output

        return sample_tokens

    def _keeping_last_rows(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def forward(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._step.requests:
                return stock(logits, *args, **kwargs)
            self._step.last_rows = logits
            if any(order.injected for order in self._step.requests.values()):
                return torch.zeros(len(logits), dtype=torch.int64, device=logits.device), None
            # without drafts, vLLM up to 0.31 asks nobody else
            said = self._judge(logits[:0], [0] * len(logits), 0)[:, 0]
            return said.clamp(min=0).to(torch.int64), None

        return forward

    def _leaving_alone(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def apply_sampling_constraints(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
            return logits if self._step.requests else stock(logits, *args, **kwargs)

        return apply_sampling_constraints

    def _judging(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        names = signature(stock)

        def rejection_sample(*args: Any, **kwargs: Any) -> Any:
            if not self._step.requests:
                return stock(*args, **kwargs)
            given = names.bind(*args, **kwargs).arguments
            return self._judge(
                given["target_logits"], given["num_draft_tokens"], given["max_spec_len"]
            )

        return rejection_sample

    def _judge(self, verify_rows: Tensor, counts: list[int], most: int) -> Tensor:
        """Judge the step. verify_rows: float32[sum(counts), V], request after request.

        Return what each request says: int32[requests, most + 1], padded.
        """
        ids = self._runner.input_batch.req_ids
        starts = [sum(counts[:i]) for i in range(len(counts))]
        batch = [i for i in range(len(counts)) if ids[i] in self._step.requests]
        requests = [self._step.requests[ids[i]] for i in batch]
        width = len(verify_rows)
        last = self._step.last_rows
        rows = torch.cat([verify_rows, last]) if last is not None else verify_rows

        def pick(wanted: list[tuple[int, int]]) -> Tensor:
            places = [
                starts[batch[order]] + row
                if row < counts[batch[order]]
                else width + batch[order]
                for order, row in wanted
            ]
            return rows[places]

        known = self._step.judged
        judged = [known[ids[i]] for i in batch] if known else judge(requests, pick)
        out = torch.full((len(counts), most + 1), PLACEHOLDER, dtype=torch.int32)
        for i, order, judgement in zip(batch, requests, judged, strict=True):
            said = [*(() if order.forced is None else (order.forced,)), *judgement.tokens]
            out[i, : len(said)] = torch.tensor(said, dtype=torch.int32)
            self._step.judged[ids[i]] = judgement
        return out.to(verify_rows.device)
