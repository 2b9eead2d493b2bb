"""Puts sessions' frames on vLLM's outputs, and takes log-probabilities from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from gateway.ports import UNLIKELY
from speculation.protocol.messages import TokenLogprob
from verifier.vllm_target.admission import FIELD
from verifier.vllm_target.core.session_slot import SessionSlot


def attach(output: EngineCoreOutput, slot: SessionSlot) -> None:
    """Let an output carry its session's latest frames: [first's number, frames, complaint].

    vLLM gives the field to KV connectors, whose entries stay. Log-probabilities are in the
    frames, so vLLM need not carry them too.
    """
    first, frames = slot.recent
    carried: dict[str, Any] = output.kv_transfer_params or {}
    output.kv_transfer_params = {**carried, FIELD: [first, frames, slot.complaint]}
    output.new_logprobs = None


def logprobs(
    output: ModelRunnerOutput, request: Request, index: int, count: int
) -> list[TokenLogprob] | None:
    """Return the log-probabilities of `count` new tokens; None if the request wants none.

    index: the request's row in the step. vLLM gives each as many alternatives as any request of
    the step wants.
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
