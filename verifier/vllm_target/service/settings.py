"""Settings of the vLLM target: a few of ours, and vLLM's own engine options as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.dequantise import VOCABULARY
from models.errors import CannotOpen


@dataclass(frozen=True, slots=True)
class VllmSettings:
    model: str
    """A directory of safetensors, or a name that vLLM can fetch."""

    options: Mapping[str, Any]
    """vLLM's engine options, by their Python names (`tensor_parallel_size`)."""

    vocabulary: Path | None = None
    """A GGUF file with the same tokens, weights not needed. None: the one that
    `models dequantize` left in the model's directory."""

    self_test: bool = True

    @staticmethod
    def of(model: str, table: Mapping[str, Any]) -> VllmSettings:
        """Read the table [vllm]; keys may be spelt as vLLM's command line spells them."""
        options = {name.lstrip("-").replace("-", "_"): value for name, value in table.items()}
        vocabulary = options.pop("vocabulary", None)
        return VllmSettings(
            str(options.pop("model", model)),
            options,
            Path(vocabulary) if vocabulary else None,
            bool(options.pop("self_test", True)),
        )

    @property
    def vocabulary_file(self) -> Path:
        """Raises CannotOpen if there is none."""
        found = self.vocabulary or Path(self.model) / VOCABULARY
        if not found.is_file():
            raise CannotOpen(
                f"{found} is missing: set `vocabulary` in [vllm] to a GGUF file of the same"
                " family, so that drafts and text can be read"
            )
        return found
