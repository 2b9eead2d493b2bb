"""Puts our judge in the place of the samplers of Model Runner V1.

vLLM masks what a grammar forbids in the rows of draft tokens and in the row after them. Both
kinds are taken where temperature and cuts would follow, with vLLM's own settings neutral; the
judge applies ours to every row alike. This leaves unused what this vLLM gets wrong on CPUs:
`expand_batch_to_tokens` returns uninitialised memory, and top-k fails on a step without draft
tokens. A test notices when upstream mends the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler, sampler

from picospec.speculation.sampling.judging import Judgement
from picospec.verifier.vllm_target.verify_request import VerifyRequest
from picospec.verifier.vllm_target.worker.judging import judge
from picospec.verifier.vllm_target.worker.upload import upload

Stock = Callable[..., Any]
"""What vLLM has in the place of one of our methods."""

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

    vocabulary_size: int
    """The ids that are tokens; what a row has beyond them is padding, and is cut off."""

    def take(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([self._row(self.places[number], row) for number, row in wanted])

    def _row(self, i: int, row: int) -> Tensor:
        after_drafts = row == self.counts[i]
        logits = self.last_rows[i] if after_drafts else self.verify_rows[self.starts[i] + row]
        return logits[: self.vocabulary_size]


class SamplerHooks:
    """Wraps the runner's step and the two samplers. Without requests, vLLM's own code runs."""

    def __init__(self, runner: Any, tokens: int) -> None:
        self._runner = runner
        self._tokens = tokens
        self._step = Step()
        self._wrap(runner, "execute_model", self._take_requests)
        self._wrap(runner, "sample_tokens", self._return_judgements)
        self._wrap(runner.sampler.topk_topp_sampler, "forward", self._keep_last_rows)
        self._wrap(rejection_sampler, "apply_sampling_constraints", self._apply_none)
        self._names = signature(rejection_sampler.rejection_sample)
        self._wrap(rejection_sampler, "rejection_sample", self._judge_draft_rows)
        if runner.device.type == "cpu":
            _never_compile()

    def _wrap(self, holder: Any, name: str, ours: Callable[..., Any]) -> None:
        """Call ours in the place of a function of vLLM's, and give it that function."""
        setattr(holder, name, partial(ours, getattr(holder, name)))

    def _take_requests(
        self, stock: Stock, scheduler_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        self._step = Step(getattr(scheduler_output, "picospec_requests", None) or {})
        return stock(scheduler_output, *args, **kwargs)

    def _return_judgements(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        if self._step.requests and output is not None:
            output.picospec_judged = self._step.judged
        self._step = Step()
        return output

    def _keep_last_rows(self, stock: Stock, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._step.requests:
            return stock(logits, *args, **kwargs)
        self._step.last_rows = logits
        if any(request.injected for request in self._step.requests.values()):
            return torch.zeros(len(logits), dtype=torch.int64, device=logits.device), None
        # without draft tokens, vLLM up to 0.31 calls no rejection sampler
        tokens = self._judge(logits[:0], [0] * len(logits), 0)[:, 0]
        return tokens.clamp(min=0).to(torch.int64), None

    def _apply_none(self, stock: Stock, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        return logits if self._step.requests else stock(logits, *args, **kwargs)

    def _judge_draft_rows(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        if not self._step.requests:
            return stock(*args, **kwargs)
        given = self._names.bind(*args, **kwargs).arguments
        return self._judge(
            given["target_logits"], given["num_draft_tokens"], given["max_spec_len"]
        )

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
            logits = Logits(verify_rows, last, starts, counts, places, self._tokens)
            judged = judge(requests, logits, lazily=device.type == "cpu")
            self._step.judged = {ids[i]: each for i, each in zip(places, judged, strict=True)}
        tokens = np.full((len(counts), most + 1), PLACEHOLDER, np.int32)
        for i, request in zip(places, requests, strict=True):
            generated = [*request.owed, *self._step.judged[ids[i]].tokens]
            tokens[i, : len(generated)] = generated
        return upload(tokens, device)


def _never_compile() -> None:
    """Use a function as it was written: compiling it at the first request that wants
    log-probabilities stops every session of a CPU host for up to a minute."""
    compiled = getattr(sampler, "batched_count_greater_than", None)
    plain = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    sampler.batched_count_greater_than = plain
