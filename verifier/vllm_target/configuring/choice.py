"""What the plugin chose for this engine, on its way to the core and the workers.

It travels in `VllmConfig.additional_config`, which vLLM hands to all of its processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import msgspec

from picospec.speculation.protocol.messages import Limits

FIELD: Final = "picospec"
"""Our key in `additional_config`."""


@dataclass(frozen=True, slots=True)
class Choice:
    runner: Literal["v1", "v2"]
    """The model runner that vLLM uses."""

    max_verify: int
    """Most draft tokens of a session in one step. A forced token may stand before them."""

    proposer: Literal["none", "operator"]
    """Who proposes draft tokens besides edges: nobody, or what --speculative-config names."""

    def narrowed(self, limits: Limits) -> Limits:
        """Return limits with as many draft tokens as this engine takes."""
        return msgspec.structs.replace(limits, max_verify=self.max_verify)

    @property
    def width(self) -> int:
        """The draft tokens and the forced token of one step."""
        return self.max_verify + 1

    def added_to(self, carried: dict[str, Any]) -> dict[str, Any]:
        """Return `additional_config` with this choice in it."""
        return {**carried, FIELD: asdict(self)}

    @staticmethod
    def of(vllm_config: Any) -> Choice | None:
        """Return what was chosen; None where the engine serves no sessions."""
        carried = vllm_config.additional_config
        found = carried.get(FIELD) if isinstance(carried, dict) else None
        return None if found is None else Choice(**found)
