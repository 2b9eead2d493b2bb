"""Settings of the vLLM target: a few of ours, and vLLM's engine options, unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VllmSettings:
    model: str
    """A directory of safetensors, or a name that vLLM can fetch."""

    options: Mapping[str, Any]
    """vLLM's engine options, by their Python names (`tensor_parallel_size`)."""

    self_test: bool = True

    @staticmethod
    def of(model: str, table: Mapping[str, Any]) -> VllmSettings:
        """Read the table [vllm]; keys may be spelt as vLLM's command line spells them."""
        options = {name.lstrip("-").replace("-", "_"): value for name, value in table.items()}
        model, self_test = options.pop("model", model), options.pop("self_test", True)
        return VllmSettings(str(model), options, bool(self_test))

    @property
    def tokenizer(self) -> str:
        """A directory or repository as vLLM reads it: the model's own unless one is named."""
        return str(self.options.get("tokenizer") or self.model)
