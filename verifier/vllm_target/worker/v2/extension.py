"""The worker extension of Model Runner V2: vLLM's own speculation beside edges' draft tokens.

A worker imports this module before it builds its runner. So what vLLM's speculator proposes
fits from the first step on into rows that are as wide as an edge's draft.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from vllm.platforms import current_platform

from picospec.verifier.vllm_target.worker.extension import (
    PicoWorkerExtension as PicoWorkerExtension,
)

if current_platform.is_cpu():  # first: it changes what the runner's modules import
    import vllm.v1.worker.cpu.shm  # noqa: F401
from vllm.v1.worker.gpu import model_runner

NO_TOKEN = -1


def _widened(stock: Callable[..., Tensor], width: int, *args: Any, **kwargs: Any) -> Tensor:
    """Return what a speculator proposes as int[R, width]."""
    proposed = stock(*args, **kwargs)
    return pad(proposed, (0, width - proposed.shape[1]), value=NO_TOKEN)


def _init_speculator(
    stock: Callable[..., Any], config: Any, device: object, states: object
) -> Any:
    speculator = stock(config, device, states)
    width = config.num_speculative_tokens
    speculator.propose = partial(_widened, speculator.propose, width)
    return speculator


if not isinstance(model_runner.init_speculator, partial):
    model_runner.init_speculator = partial(_init_speculator, model_runner.init_speculator)
