"""A Choice carries the plugin's choice for this engine to the core and the workers.

It travels in `VllmConfig.additional_config`, which vLLM passes to all of its processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

NAME: Final = "picospec"
"""Our plugins have this name in VLLM_PLUGINS, and our entry in `additional_config` this key."""

CONFIG: Final = "PICOSPEC_VERIFIER_CONFIG"
"""This environment variable gives our plugin the path of the settings file."""

MOST_ROWS: Final = 1024
"""A step with draft tokens has at most this many rows, or one for each request if that is more:
the memory of their logits is taken when KV has its memory already, and vLLM measures before
only a step with a row for each request. 1,024 rows of 152,000 tokens take .9 GB, in bfloat16
and once more in float32."""

MASK_ROWS: Final = (1, 4, 16)
"""The masks of each request with a grammar have one of these numbers of rows, or that of the
room for draft tokens: vLLM compiles a kernel for each number."""

SOCKET: Final = "PICOSPEC_VLLM_SOCKET"
"""This environment variable names the folder of vLLM's socket, for a vLLM without a port of its
own."""


@dataclass(frozen=True, slots=True)
class Choice:
    runner: Literal["v1", "v2"]
    """vLLM uses this model runner."""

    max_verify: int
    """One step has at most this many draft tokens of a session. A token that is already
    committed may precede them."""

    head: int = 0
    """vLLM's own speculation (--speculative-config) proposes this many draft tokens."""

    seed_exact: bool = False
    """True if our judge also judges the requests without a session."""

    @property
    def width(self) -> int:
        """Return the most draft tokens of a request in one step, including a committed one."""
        return max(self.max_verify + 1, self.head)

    def added_to(self, carried: dict[str, Any]) -> dict[str, Any]:
        """Return `additional_config` with this choice added."""
        return {**carried, NAME: asdict(self)}

    @staticmethod
    def of(vllm_config: Any) -> Choice | None:
        """Return the choice in a config; None if the engine serves no sessions."""
        carried = vllm_config.additional_config
        found = carried.get(NAME) if isinstance(carried, dict) else None
        return None if found is None else Choice(**found)
