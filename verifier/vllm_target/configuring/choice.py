"""What the plugin chose for this engine, on its way to the core and the workers.

It travels in `VllmConfig.additional_config`, which vLLM hands to all of its processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

NAME: Final = "picospec"
"""VLLM_PLUGINS names our plugins so; it is also our key in `additional_config`."""

CONFIG: Final = "PICOSPEC_VERIFIER_CONFIG"
"""This variable tells our plugin where the settings file is."""

SOCKET: Final = "PICOSPEC_VLLM_SOCKET"
"""This variable names the folder of the socket that vLLM opens where nobody wants a port of its
own."""


@dataclass(frozen=True, slots=True)
class Choice:
    runner: Literal["v1", "v2"]
    """vLLM uses this model runner."""

    max_verify: int
    """A session has so many draft tokens in one step at most. One that is committed already
    may stand before them."""

    head: int = 0
    """vLLM's own speculation proposes so many draft tokens, as --speculative-config has it."""

    seed_exact: bool = False
    """Whether our judge also judges the requests of no session."""

    @property
    def width(self) -> int:
        """The most draft tokens of a request in one step, a committed one included."""
        return max(self.max_verify + 1, self.head)

    def added_to(self, carried: dict[str, Any]) -> dict[str, Any]:
        """Return `additional_config` with this choice in it."""
        return {**carried, NAME: asdict(self)}

    @staticmethod
    def of(vllm_config: Any) -> Choice | None:
        """Return what was chosen; None where the engine serves no sessions."""
        carried = vllm_config.additional_config
        found = carried.get(NAME) if isinstance(carried, dict) else None
        return None if found is None else Choice(**found)
