"""Puts our judge into vLLM's worker, in the place of its samplers.

vLLM runs its whole logits pipeline (grammar, penalties, minimum length) for the rows of draft
tokens and for the row after them. Both kinds are taken where temperature and cuts would follow,
with vLLM's own set to neutral; the judge applies ours to every row alike. This leaves unused
what this vLLM gets wrong on CPUs: `expand_batch_to_tokens` returns uninitialised memory, and
top-k fails on a step without draft tokens. A test notices when upstream mends the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler

from gateway.hosting.parent_death import die_with_parent
from speculation.sampling.judging import Judgement
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.judging import judge
from verifier.vllm_target.worker.rows import upload

PLACEHOLDER = -1
"""vLLM's mark for "no token here" in what a sampler returns."""


@dataclass(slots=True)
class Step:
    """One step's requests, and what became of them."""

    requests: dict[str, VerifyRequest] = field(default_factory=dict)
    judged: dict[str, Judgement] = field(default_factory=dict)
    last_rows: Tensor | None = None
    """float32[requests, V]: of each request, the row after its draft tokens."""


@dataclass(frozen=True, slots=True)
class Logits:
    """The step's logits where vLLM left them. See `rows.StepLogits`."""

    verify_rows: Tensor
    """float32[sum(counts), V]: the rows of draft tokens, request after request."""

    last_rows: Tensor
    starts: Sequence[int]
    counts: Sequence[int]
    places: Sequence[int]
    """Of each of our requests, its place in vLLM's batch."""

    @property
    def vocabulary_size(self) -> int:
        return int(self.last_rows.shape[1])

    def take(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        at = [(self.places[number], row) for number, row in wanted]
        return torch.stack(
            [
                self.verify_rows[self.starts[i] + row]
                if row < self.counts[i]
                else self.last_rows[i]
                for i, row in at
            ]
        )


class PicoWorkerExtension:
    """Mixed into vLLM's worker on any platform; `picospec_install` is called once, by RPC."""

    model_runner: Any

    def picospec_install(self) -> str:
        """Put the judge in place; return the runner's name."""
        runner = self.model_runner
        if not hasattr(runner, "picospec_hooks"):
            runner.picospec_hooks = SamplerHooks(runner)
            die_with_parent()
        return type(runner).__name__


class SamplerHooks:
    """Wraps the runner's step and the two samplers. Without requests, vLLM's own code runs."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._step = Step()
        sampler = runner.sampler.topk_topp_sampler
        runner.execute_model = self._taking_requests(runner.execute_model)
        runner.sample_tokens = self._returning_judgements(runner.sample_tokens)
        sampler.forward = self._keeping_last_rows(sampler.forward)
        rejection_sampler.apply_sampling_constraints = self._without_settings(
            rejection_sampler.apply_sampling_constraints
        )
        rejection_sampler.rejection_sample = self._judging(rejection_sampler.rejection_sample)
        if runner.device.type == "cpu":
            _never_compile("vllm.v1.sample.sampler", "batched_count_greater_than")

    def _taking_requests(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._step = Step(getattr(scheduler_output, "picospec_requests", None) or {})
            return stock(scheduler_output, *args, **kwargs)

        return execute_model

    def _returning_judgements(self, stock: Callable[..., Any]) -> Callable[..., Any]:
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
            if any(request.injected for request in self._step.requests.values()):
                return torch.zeros(len(logits), dtype=torch.int64, device=logits.device), None
            # without draft tokens, vLLM up to 0.31 calls no rejection sampler
            tokens = self._judge(logits[:0], [0] * len(logits), 0)[:, 0]
            return tokens.clamp(min=0).to(torch.int64), None

        return forward

    def _without_settings(self, stock: Callable[..., Any]) -> Callable[..., Any]:
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
        """Judge the step, once. verify_rows: float32[sum(counts), V], request after request.

        Return the tokens of each request's pass: int32[requests, most + 1], padded.
        """
        ids, device = self._runner.input_batch.req_ids, verify_rows.device
        places = [i for i in range(len(counts)) if ids[i] in self._step.requests]
        requests = [self._step.requests[ids[i]] for i in places]
        if not self._step.judged:
            last = verify_rows if self._step.last_rows is None else self._step.last_rows
            starts = list(accumulate(counts, initial=0))
            logits = Logits(verify_rows, last, starts, counts, places)
            judged = judge(requests, logits, lazily=device.type == "cpu")
            self._step.judged = {ids[i]: each for i, each in zip(places, judged, strict=True)}
        tokens = np.full((len(counts), most + 1), PLACEHOLDER, np.int32)
        for i, request in zip(places, requests, strict=True):
            forced = () if request.forced is None else (request.forced,)
            generated = [*forced, *self._step.judged[ids[i]].tokens]
            tokens[i, : len(generated)] = generated
        return upload(tokens, device)


def _never_compile(module: str, name: str) -> None:
    """Use a function as it was written: compiling it at the first request that wants
    log-probabilities stops every session of a CPU host for up to a minute."""
    holder = import_module(module)
    compiled = getattr(holder, name, None)
    setattr(holder, name, getattr(compiled, "_torchdynamo_orig_callable", compiled))
