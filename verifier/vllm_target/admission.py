"""Carries a session into vLLM's core, packed into the one free field of vLLM's request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from speculation.protocol import wire
from speculation.protocol.errors import LocalProtocolError
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

    def pack(self) -> dict[str, Any]:
        """Return it in types that vLLM can carry between processes."""
        return {
            "session": self.session,
            "open": wire.encode(replace(self.request, prompt=())),
            "prompt_tokens": self.prompt_tokens,
            "max_verify": self.limits.max_verify,
            "max_ahead": self.limits.max_ahead,
            "bias": [list(pair) for pair in self.bias],
            "vocabulary_size": self.vocabulary_size,
        }

    @staticmethod
    def unpack(packed: Mapping[str, Any]) -> Admission:
        """Return what was packed."""
        (request,) = wire.Decoder().feed(packed["open"])
        if not isinstance(request, Open):
            raise LocalProtocolError(f"{type(request).__name__} opens no session")
        return Admission(
            packed["session"],
            request,
            packed["prompt_tokens"],
            Limits(max_verify=packed["max_verify"], max_ahead=packed["max_ahead"]),
            tuple((token, value) for token, value in packed["bias"]),
            packed["vocabulary_size"],
        )
