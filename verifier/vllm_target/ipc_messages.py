"""Carries a session into vLLM's core, packed into the one free field of vLLM's request, and its
messages after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from speculation.answer_cache import Owner
from speculation.logit_settings import LogitSettings
from speculation.messages import Open
from speculation.model_facts import Limits

FIELD: Final = "picospec"
"""Our entry in SamplingParams.extra_args and in outputs' kv_transfer_params has this key."""

PUSH: Final = "picospec_push"
"""A call of this name has a Batch. A core passes it to its scheduler, and does not answer."""

Batch = Sequence[tuple[str, bytes]]
"""A Batch has the names of sessions, each with a packed message."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An Admission has the data from which the core runs a session."""

    session: str
    request: Open
    """This Open lacks its prompt, which vLLM has, and the extras."""

    prompt_tokens: int
    limits: Limits
    settings: LogitSettings
    """The request's extras ask for these changes of the logits."""

    vocabulary_size: int
    drawn_by_vllm: bool = False
    """True if vLLM's own sampler draws the session's tokens, with the settings of vLLM's
    request; `settings` then changes nothing."""

    owner: Owner | None = None
    """The session may draft from this owner's earlier answers."""

    def pack(self) -> bytes:
        """Return the admission in a type that vLLM can carry between processes."""
        return msgspec.msgpack.encode(replace(self, request=replace(self.request, prompt=())))

    @staticmethod
    def unpack(packed: bytes) -> Admission:
        """Return the admission that was packed."""
        return msgspec.msgpack.decode(packed, type=Admission)
