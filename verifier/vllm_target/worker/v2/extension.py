"""Extends the worker of Model Runner V2: edges' draft tokens beside vLLM's own speculation.

A worker imports this module before it builds its runner. So from the first step on proposals of
vLLM's speculator fit into rows that are as wide as an edge's draft, and a head draws the tokens
of sessions with the judge's noise, which makes it right more often.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.platforms import current_platform

from picospec.verifier.vllm_target.worker.extension import (
    PicoWorkerExtension as PicoWorkerExtension,
)

if current_platform.is_cpu():  # must come first: it changes the runner modules' imports
    import vllm.v1.worker.cpu.shm  # noqa: F401
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.sample import gumbel
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

NO_TOKEN = -1
DRAFT_SALT: int = gumbel._DRAFT_NOISE_SALT.value
"""vLLM adds this to the noise place of a head's draw, so that its noise is not the judge's."""


def _widened(stock: Callable[..., Tensor], width: int, *args: Any, **kwargs: Any) -> Tensor:
    """Return a speculator's proposal, padded to int[R, width]."""
    proposed = stock(*args, **kwargs)
    return pad(proposed, (0, width - proposed.shape[1]), value=NO_TOKEN)


def _sample_draft(
    stock: Callable[..., Tensor], speculator: Any, hidden: Tensor, places: Tensor,
    slots: Tensor, temperatures: Tensor, seeds: Tensor, step: Tensor, cache: Tensor | None,
    number: int = 0, **more: Any,
) -> Tensor:  # fmt: skip
    """Draw a head's tokens: those of sessions with the judge's noise, others as vLLM does.

    It may be captured in a CUDA graph, so the device looks up which requests are sessions'.
    """
    ours: Tensor = speculator.picospec_ours
    if cache is not None:
        places = places - DRAFT_SALT * ours[slots]
    elif not (speculator.use_local_argmax_reduction or speculator.enable_adaptive_verification):
        logits = speculator.compute_draft_logits(hidden, number)
        scaled = torch.where(ours, temperatures, 0.0)
        drawn: Tensor = gumbel.gumbel_sample(logits, slots, scaled, seeds, places, True, False)
        return drawn
    return stock(hidden, places, slots, temperatures, seeds, step, cache, number, **more)


def _init_speculator(
    stock: Callable[..., Any], config: Any, device: torch.device, states: object
) -> Any:
    speculator = stock(config, device, states)
    width = config.num_speculative_tokens
    speculator.propose = partial(_widened, speculator.propose, width)
    if isinstance(speculator, DraftModelSpeculator):
        speculator.picospec_ours = torch.zeros(
            speculator.max_num_reqs, dtype=torch.bool, device=device
        )
        speculator.sample_draft = partial(_sample_draft, speculator.sample_draft, speculator)
    return speculator


if not isinstance(model_runner.init_speculator, partial):
    model_runner.init_speculator = partial(_init_speculator, model_runner.init_speculator)
