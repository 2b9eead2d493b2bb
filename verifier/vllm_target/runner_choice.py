"""A RunnerChoice carries the plugin's choice for this engine to the core and the workers.

It travels in `VllmConfig.additional_config`, which vLLM passes to all of its processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

NAME: Final = "picospec"
"""Our plugins have this name in VLLM_PLUGINS, and our entry in `additional_config` this key."""


@dataclass(frozen=True, slots=True)
class RunnerChoice:
    runner: Literal["v1", "v2"]
    """vLLM uses this model runner."""

    max_verify: int
    """One step has at most this many draft tokens of a session. A token that is already
    committed may precede them."""

    head: int = 0
    """vLLM's own speculation (--speculative-config) proposes this many draft tokens."""

    seed_exact: bool = False
    """True if our judge also judges the requests without a session."""

    unequal_graphs: bool = False
    """True if steps in which requests have unequal rows should run on FULL CUDA graphs."""

    @property
    def width(self) -> int:
        """Return the most draft tokens of a request in one step, including a committed one."""
        return max(self.max_verify + 1, self.head)

    def added_to(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return `additional_config` with this choice added."""
        return {**parameters, NAME: asdict(self)}

    @staticmethod
    def of(vllm_config: Any) -> RunnerChoice | None:
        """Return the choice in a config; None if the engine serves no sessions."""
        parameters = vllm_config.additional_config
        fields = parameters.get(NAME) if isinstance(parameters, dict) else None
        return None if fields is None else RunnerChoice(**fields)
