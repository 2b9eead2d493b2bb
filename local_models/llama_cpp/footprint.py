"""Predicts, before a model loads, the memory that a service takes with it on a processor.

A mapped file is dropped once its weights are laid out for the processor, so they count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from local_models.llama_cpp.context_length import Length
from local_models.llama_cpp.model import Model

TOKEN_BYTES: Final = 400
"""An open tokenizer takes about so much a token: its bytes, and its place in two tries."""

PROCESS_BYTES: Final = 140_000_000
"""A service takes so much without a model: Python and its libraries. Measured as Rss; the
processes beside it, which render and try templates and grammars, take 0.1 GB more."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """A Footprint has the bytes of a service's parts."""

    weights: int
    kv: int
    """The KV of all slots, with the states of recurrent layers."""

    passes: int
    """The logits of a pass, as they are computed and as they are read."""

    vocabulary: int
    """The model's; a service has another one, which makes and reads texts."""

    @property
    def model(self) -> int:
        """Return the bytes that are freed with the model."""
        return self.weights + self.kv + self.passes + self.vocabulary

    @property
    def total(self) -> int:
        return self.model + self.vocabulary + PROCESS_BYTES

    def __str__(self) -> str:
        rest = self.total - self.weights - self.kv
        return (
            f"{gigabytes(self.total)}: weights {gigabytes(self.weights)}, KV"
            f" {gigabytes(self.kv)}, and {gigabytes(rest)} for passes, vocabularies and Python"
        )


def footprint(model: Model, length: Length, logits_rows: int) -> Footprint:
    """Return the footprint of a service. model: its vocabulary suffices. logits_rows: so many
    rows of a pass have logits."""
    return Footprint(
        model.path.stat().st_size,
        length.kv_bytes + length.state_bytes,
        2 * 4 * logits_rows * model.vocabulary_size,
        TOKEN_BYTES * model.vocabulary_size,
    )


def gigabytes(size_bytes: float) -> str:
    """Return a size in GB, as messages show it."""
    return f"{size_bytes / 1e9:.1f} GB"
