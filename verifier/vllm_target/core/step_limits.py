"""Makes vLLM's scheduler plan one step as sessions need it.

Requests that wait for drafts are left out of the step without losing KV cache or slot, and the
other requests get no more rows than they have draft tokens for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Final

from numpy.typing import NDArray
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from verifier.vllm_target.verify_request import MASK_ROWS

_CAPS: Final = ("max_num_running_reqs", "max_num_active_reqs")


def adapters(requests: Iterable[Request]) -> set[int]:
    """Return vLLM's ids of the LoRA adapters that requests have."""
    return {each.lora_request.lora_int_id for each in requests if each.lora_request}


@contextmanager
def hidden(scheduler: Scheduler, waiting_sessions: list[Request]) -> Iterator[None]:
    """Hide requests that wait for drafts, and the slots and adapters that they take, from the
    scheduler while it plans a step. vLLM counts the adapters of a step, and hidden ones are in
    the next."""
    if not waiting_sessions:
        yield
        return
    order, out = scheduler.running, {id(request) for request in waiting_sessions}
    scheduler.running = [request for request in order if id(request) not in out]
    caps = {name: getattr(scheduler, name) for name in _CAPS if hasattr(scheduler, name)}
    for name, value in caps.items():
        setattr(scheduler, name, value - len(waiting_sessions))
    if loras := scheduler.lora_config:
        scheduler.lora_config = fewer = copy(loras)  # the workers have the same one
        fewer.max_loras -= len(adapters(waiting_sessions) - adapters(scheduler.running))
    try:
        yield
    finally:
        scheduler.lora_config = loras
        for name, value in caps.items():
            setattr(scheduler, name, value)
        left = {id(request) for request in scheduler.running} | out
        known = {id(request) for request in order}
        scheduler.running = [
            *(request for request in order if id(request) in left),
            *(request for request in scheduler.running if id(request) not in known),
        ]


@contextmanager
def unpadded(scheduler: Scheduler) -> Iterator[None]:
    """Keep vLLM from widening a request of one row, whose other tokens are all cached.

    To fit a CUDA graph vLLM adds rows without tokens, up to the largest number of draft tokens.
    Our judge would mistake them for rows of the session's own draft tokens.
    """
    most, scheduler.num_spec_tokens = scheduler.num_spec_tokens, 0
    try:
        yield
    finally:
        scheduler.num_spec_tokens = most


def narrowed(masks: NDArray[Any], drafts: Sequence[int], room: int) -> NDArray[Any]:
    """Return masks without rows that no request has. vLLM 0.33 makes `room` rows for each
    request, whether it has draft tokens or not; older versions make only those that it has.

    masks: [rows, words]. drafts: the number of draft tokens of each request.
    """
    if len(masks) != len(drafts) * room:
        return masks
    rows = next((each for each in MASK_ROWS if max(drafts) < each), room)
    return masks.reshape(len(drafts), room, -1)[:, :rows].reshape(len(drafts) * rows, -1)
