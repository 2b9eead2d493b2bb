"""Carries a session into vLLM's core, packed into the one free field of vLLM's request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from speculation.protocol.messages import Limits, Open
from verifier.vllm_target.verify_request import Bias

FIELD: Final = "picospec"
"""The key of our entry in SamplingParams.extra_args and in outputs' kv_transfer_params."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the core must know to run a session."""

    session: str
    request: Open
    """Its prompt is empty: vLLM has the prompt."""

    prompt_tokens: int
    limits: Limits
    bias: Bias
    vocabulary_size: int

    def pack(self) -> bytes:
        """Return it in a type that vLLM can carry between processes."""
        return msgspec.msgpack.encode(replace(self, request=replace(self.request, prompt=())))

    @staticmethod
    def unpack(packed: bytes) -> Admission:
        """Return what was packed."""
        return msgspec.msgpack.decode(packed, type=Admission)
