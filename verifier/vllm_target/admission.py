"""Carries a session into vLLM's core, packed into the one free field of vLLM's request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from picospec.speculation.protocol.messages import Limits, Open
from picospec.speculation.sampling.logit_settings import LogitSettings

FIELD: Final = "picospec"
"""Our entry has this key in SamplingParams.extra_args and in outputs' kv_transfer_params."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the core must know to run a session."""

    session: str
    request: Open
    """Its prompt is empty, because vLLM has the prompt, and it has no extras."""

    prompt_tokens: int
    limits: Limits
    settings: LogitSettings
    """The request's extras ask for these changes of the logits."""

    vocabulary_size: int
    drawn_by_vllm: bool = False
    """vLLM's own sampler draws the session's tokens, with the settings of vLLM's request; those
    that are left here are neutral."""

    def pack(self) -> bytes:
        """Return it in a type that vLLM can carry between processes."""
        return msgspec.msgpack.encode(replace(self, request=replace(self.request, prompt=())))

    @staticmethod
    def unpack(packed: bytes) -> Admission:
        """Return what was packed."""
        return msgspec.msgpack.decode(packed, type=Admission)
