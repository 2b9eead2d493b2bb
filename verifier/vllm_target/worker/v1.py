"""Puts our judge in the place of the samplers of Model Runner V1.

vLLM masks the tokens that a grammar forbids, in the rows of draft tokens and in the row after
them. The hooks take both kinds of row before temperature and cuts, with vLLM's own settings
neutral, and the judge applies ours to every row alike. This avoids a bug of vLLM 0.32 on CPUs:
`expand_batch_to_tokens` returns uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitBiasLogitsProcessor, MinPLogitsProcessor

from speculation.judge import Judgement
from speculation.judges import seeded
from speculation.messages import Sampling
from verifier.vllm_target import patcher
from verifier.vllm_target.patches import Original
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.upload import upload

PLACEHOLDER = -1
"""vLLM marks with this a place where a sampler returned no token."""


@dataclass(slots=True)
class Step:
    """A Step has one step's requests and their outcomes."""

    sessions: Mapping[str, VerifyRequest] = field(default_factory=dict)
    requests: Mapping[int, VerifyRequest] = field(default_factory=dict)
    """Our judge draws for these requests, by their place in vLLM's batch."""

    judged: dict[str, Judgement] = field(default_factory=dict)
    last_rows: Sequence[Tensor] = ()
    """Each request has this row after its draft tokens: float32[V]."""


class Undrawn:
    """Replaces a generator of vLLM's that nothing draws from. vLLM rewinds the generator of a
    row inside a prompt; a CPU generator has no offset, and that would end the worker."""

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        """Ignore the offset."""


class SamplerHooks:
    """Wraps the runner's step and the two samplers, for the rows that our judge draws.

    These are the rows of sessions, and the last rows of vLLM's own requests with a seed, so
    that a text is the same with and without an edge. vLLM's own code draws all other rows.
    """

    def __init__(self, runner: Any, tokens: int) -> None:
        self._runner = runner
        self._tokens = tokens
        self._step = Step()
        self._names = signature(rejection_sampler.rejection_sample)
        patcher.apply("v1", ours=self, runner=runner)
        if runner.device.type == "cpu":
            patcher.apply("v1 on CPUs")
        _serve_all_parameters(runner)

    def warm_up(self) -> None:
        """Do nothing: no kernel of these hooks is compiled."""

    def _take_requests(
        self, original: Original, scheduler_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        self._step = Step(getattr(scheduler_output, "picospec_requests", None) or {})
        return original(scheduler_output, *args, **kwargs)

    def _return_judgements(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if self._step.sessions and output is not None:
            output.picospec_judged = self._step.judged
        self._step = Step()
        return output

    def _sample(self, original: Original, logits: Tensor, drafts: Any) -> Any:
        """Let vLLM sample a step without draft tokens as it does without speculation: its
        rejection sampler would copy all logits, and fails on top-k if there are no rows."""
        return original(logits, drafts if drafts and any(drafts.num_draft_tokens) else None)

    def _draw_last_rows(
        self, original: Original, logits: Tensor, generators: dict[int, Any], k: Tensor | None,
        p: Tensor | None,
    ) -> Any:  # fmt: skip
        """Draw a token for each request. k, p: top-k and top-p of each row, None for none."""
        self._step.requests = requests = self._requests_of(generators)
        generators.update(dict.fromkeys(generators, Undrawn()))
        if not requests:
            return original(logits, generators, k, p)
        self._step.last_rows = logits
        drawn = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        if theirs := [i for i in range(len(logits)) if i not in requests]:
            at = upload(np.array(theirs), logits.device)
            rows = [None if cut is None else cut[at] for cut in (k, p)]
            drawn[at] = original(logits[at], {}, *rows)[0].to(torch.int64)
        if any(request.draft for request in requests.values()):
            return drawn, None
        tokens = self._judge(logits[:0], [0] * len(logits), 0, drawn)[:, 0]
        return tokens.clamp(min=0).to(torch.int64), None

    def _requests_of(self, generators: Mapping[int, Any]) -> dict[int, VerifyRequest]:
        """Return the requests for which our judge draws, by their place in vLLM's batch.
        generators: those of vLLM's own requests with a seed."""
        batch = self._runner.input_batch
        seeded = {i: self._seeded(batch.req_ids[i], i) for i in generators}
        return seeded | {
            batch.req_id_to_index[name]: request
            for name, request in self._step.sessions.items()
        }

    def _seeded(self, request_id: str, i: int) -> VerifyRequest:
        """Return what is still to apply to a row after vLLM's penalties and temperature."""
        params = self._runner.requests[request_id].sampling_params
        left = Sampling(1.0, top_p=params.top_p, top_k=max(0, params.top_k), min_p=params.min_p)
        at = int(self._runner.input_batch.num_tokens_no_spec[i]) - 1
        return VerifyRequest(left, seeded(params.seed % 2**64, at))

    def _apply_none(self, _: Original, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return logits

    def _judge_draft_rows(self, _: Original, *args: Any, **kwargs: Any) -> Tensor:
        arguments = self._names.bind(*args, **kwargs).arguments
        counts, drawn = arguments["num_draft_tokens"], arguments["bonus_token_ids"].view(-1)
        return self._judge(arguments["target_logits"], counts, arguments["max_spec_len"], drawn)

    def _judge(
        self, verify_rows: Tensor, counts: list[int], most: int, drawn: Tensor
    ) -> Tensor:
        """Judge the step. verify_rows: float32[sum(counts), V], request after request.

        drawn: int[requests], the tokens of rows that vLLM draws. Return the tokens of each
        request: int32[requests, most + 1], padded.
        """
        step = self._step
        ids = self._runner.input_batch.req_ids
        starts = list(accumulate(counts, initial=0))
        tokens = np.full((len(counts), most + 1), PLACEHOLDER, np.int32)
        for i, request in step.requests.items():
            rows = [*verify_rows[starts[i] : starts[i + 1]], step.last_rows[i]]
            judgement = request.judge_logits(partial(self._logits, rows))
            tokens[i, : len(judgement.tokens)] = judgement.tokens
            step.judged[ids[i]] = judgement
        ours = np.isin(np.arange(len(counts)), list(step.requests))
        result = upload(tokens, verify_rows.device)
        result[:, 0] = torch.where(
            upload(ours, verify_rows.device), result[:, 0], drawn.to(torch.int32)
        )
        return result

    def _logits(self, rows: Sequence[Tensor], i: int) -> NDArray[np.float32]:
        """Return a row without the padding of the vocabulary: float32[V]. CPU logits are not
        copied, and numpy sorts them faster than torch does."""
        row: NDArray[np.float32] = rows[i][: self._tokens].to(torch.float32).cpu().numpy()
        return row


def _serve_all_parameters(runner: Any) -> None:
    """Give vLLM's own requests min_p and logit_bias. vLLM leaves them out beside speculation,
    where they would miss the draft rows, but these requests have no draft tokens."""
    processors = runner.input_batch.logitsprocs
    config, device = runner.vllm_config, runner.device
    pinned = device.type == "cuda"
    processors.argmax_invariant.append(MinPLogitsProcessor(config, device, pinned))
    processors.non_argmax_invariant.append(LogitBiasLogitsProcessor(config, device, pinned))


def uncompiled(compiled: Original, *args: Any) -> Any:
    """Call the original of a compiled function."""
    return getattr(compiled, "_torchdynamo_orig_callable", compiled)(*args)
