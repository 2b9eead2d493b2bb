"""Model Runner V2 is changed here for edges' draft tokens: vLLM's proposals, memory, CUDA
graphs, warm-up and grammar masks.

A worker imports this module before it builds its runner. So from the first step on proposals of
vLLM's speculator fit into rows that are as wide as an edge's draft, and a head draws the tokens
of sessions with the judge's noise, which makes it right more often.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.config import get_current_vllm_config_or_none
from vllm.platforms import current_platform
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.sample import gumbel
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from verifier.vllm_target import patcher
from verifier.vllm_target.patches import Original
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.verify_request import MASK_ROWS, MOST_ROWS
from verifier.vllm_target.worker.extension import (
    PicoWorkerExtension as PicoWorkerExtension,
)

if current_platform.is_cpu():  # must come first: it changes the runner modules' imports
    import vllm.v1.worker.cpu.shm  # noqa: F401

BUFFERED_MASK_ROWS: Final = 2048
"""The masks of grammars have a buffer of this many rows on the device: 39 MB for 152,000
tokens."""

DRAFT_SALT: int = gumbel._DRAFT_NOISE_SALT.value
"""vLLM adds this to the noise place of a head's draw, so that its noise is not the judge's."""


class HeadProposals:
    """Changes what vLLM's speculator proposes. width: a step has room for so many tokens."""

    def __init__(self, speculator: Any, width: int, device: torch.device) -> None:
        self._speculator = speculator
        self._width = width
        patcher.apply("v2 speculator", ours=self, speculator=speculator)
        if isinstance(speculator, DraftModelSpeculator):
            self.ours = torch.zeros(speculator.max_num_reqs, dtype=torch.bool, device=device)
            patcher.apply("v2 draft model", ours=self, speculator=speculator)

    def widened(self, original: Original, *args: Any, **kwargs: Any) -> Tensor:
        """Return a speculator's proposal, padded to int[R, width]."""
        proposed = original(*args, **kwargs)
        return pad(proposed, (0, self._width - proposed.shape[1]), value=-1)

    def sample_draft(
        self, original: Original, hidden: Tensor, places: Tensor, slots: Tensor,
        temperatures: Tensor, seeds: Tensor, step: Tensor, cache: Tensor | None,
        spec_step_idx: int = 0, **more: Any,
    ) -> Tensor:  # fmt: skip
        """Draw a head's tokens: those of sessions with the judge's noise, others as vLLM does.

        It may be captured in a CUDA graph, so the device looks up which requests are sessions'.
        """
        own = self._speculator
        if cache is not None:
            places = places - DRAFT_SALT * self.ours[slots]
        elif not (own.use_local_argmax_reduction or own.enable_adaptive_verification):
            logits = own.compute_draft_logits(hidden, spec_step_idx)
            scaled = torch.where(self.ours, temperatures, 0.0)
            drawn: Tensor = gumbel.gumbel_sample(
                logits, slots, scaled, seeds, places, True, False
            )
            return drawn
        tensors = hidden, places, slots, temperatures, seeds, step, cache
        return original(*tensors, spec_step_idx, **more)


def init_speculator(
    original: Original, config: Any, device: torch.device, states: object
) -> Any:
    """Return vLLM's speculator with our changes. config: vLLM's VllmConfig."""
    speculator = original(config, device, states)
    HeadProposals(speculator, config.num_speculative_tokens, device)
    return speculator


def request_state(original: Original, **given: Any) -> Any:
    """Keep the tokens of all requests in the host's memory if nothing of vLLM's reads them on
    the device. For n-grams, which the null proposer is by name, vLLM takes memory of the device
    for every token that all requests may have: 1 GB for 1,024 of 262,144 tokens."""
    if _proposes_nothing():
        given["use_dense_all_token_ids"] = False
    return original(**given)


def resolve_graphs(
    original: Original, config: Any, support: Any, backend: Any,
    uniform_decode_query_len: int = 1, **others: Any,
) -> Any:  # fmt: skip
    """Choose the kinds of CUDA graphs by the rows a request that they will have. vLLM asks with
    the room that it reserves, and for so many rows an attention backend may have no graphs. If
    nothing is proposed, those of one row are the only graphs of decodes."""
    rows = 1 if _proposes_nothing() else uniform_decode_query_len
    return original(config, support, backend, rows, **others)


def create_metadata_builders(original: Original, group: Any, *args: Any, **more: Any) -> None:
    """Let attention take the lengths of requests from the host. vLLM's FlashInfer waits for the
    device's in each step if draft tokens are configured, because those under way may be
    rejected. A session with some under way has no row in the next step, so that the host's
    lengths are right."""
    original(group, *args, **more)
    for builder in group.metadata_builders if _proposes_nothing() else ():
        if hasattr(builder, "_num_speculative_tokens"):
            builder._num_speculative_tokens = 0


def _proposes_nothing() -> bool:
    """Return True if the engine whose parts this process builds has no speculation of vLLM's
    own beside sessions."""
    config = get_current_vllm_config_or_none()
    choice = RunnerChoice.of(config) if config else None
    return choice is not None and not choice.head


def warm_up(original: Original, runner: Any, *args: Any, **more: Any) -> None:
    """Warm up with fewer requests, so that their rows, all of full width, are not more than a
    step may have: KV has its memory already."""
    config = runner.scheduler_config
    runner.scheduler_config = fewer = copy(config)
    fewer.max_num_seqs = min(config.max_num_seqs, max(2, MOST_ROWS // runner.decode_query_len))
    try:
        original(runner, *args, **more)
    finally:
        runner.scheduler_config = config


class GrammarMasks(model_runner.StructuredOutputsWorker):
    """Applies the masks of grammars in parts, if they have more rows than its buffer on the
    device. vLLM's buffer has all rows that all requests may have: 0.7 GB for 1,024 requests."""

    def __init__(self, *args: Any, max_num_logits: int, **kwargs: Any) -> None:
        rows = min(max_num_logits, BUFFERED_MASK_ROWS)
        super().__init__(*args, max_num_logits=rows, **kwargs)

    def apply_grammar_bitmask(
        self, logits: Tensor, input_batch: Any, grammar_req_ids: list[str], grammar_bitmask: Any
    ) -> None:
        """Mask the logits, in place. grammar_bitmask: [rows, words], request after request."""
        if not grammar_req_ids:
            return
        ends = np.cumsum(self._rows(input_batch, grammar_req_ids, len(grammar_bitmask)))
        begin, row = 0, 0
        while begin < len(ends):
            most = row + len(self.logits_indices)
            end = max(begin + 1, int(np.searchsorted(ends, most, side="right")))
            names, until = grammar_req_ids[begin:end], int(ends[end - 1])
            masks = grammar_bitmask[row:until]
            super().apply_grammar_bitmask(logits, input_batch, names, masks)
            begin, row = end, until

    def warm_up(self, logits: Tensor, batch: Any) -> None:
        """Mask nothing of one request, with each number of rows."""
        words = self.grammar_bitmask.shape[1]
        for rows in (1,) if self._varies else MASK_ROWS:
            allowed = np.full((rows, words), -1, np.int32)
            self.apply_grammar_bitmask(logits, batch, batch.req_ids, allowed)

    @property
    def _varies(self) -> bool:
        """False for vLLM 0.33, with which all requests have the same number of rows."""
        return hasattr(self, "num_bonus_tokens")

    def _rows(self, batch: Any, names: list[str], rows: int) -> list[int]:
        """Return the number of mask rows of each request."""
        if not self._varies:
            self.mask_stride = rows // len(names)
            return [self.mask_stride] * len(names)
        drafts, counts = batch.num_draft_tokens_per_req, np.diff(batch.cu_num_logits_np)
        counts = counts if drafts is None else drafts + self.num_bonus_tokens
        place = {name: i for i, name in enumerate(batch.req_ids)}
        return [int(counts[place[name]]) for name in names]


patcher.apply("v2 modules")
