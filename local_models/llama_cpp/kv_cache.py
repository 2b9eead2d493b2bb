"""What a context keeps of its sequences: the KV of their tokens, and copies of their states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cache = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"]


@dataclass(frozen=True, slots=True)
class KvCache:
    """A Q8_0 cache is smaller and less precise than F16, but exact for any number of threads
    and rows."""

    sequences: int = 1
    keys: Cache = "F16"
    values: Cache | None = None
    """None: as the keys."""

    rollback: int = 0
    """Recurrent layers keep so many copies of their states in each sequence, to go back by as
    many tokens of a pass."""

    checkpoints: int = 0
    """So many copies of a sequence's states outlast the pass: with a rollback, after each
    segment without logits, as prompts are read; else one after each CHECKPOINT_TOKENS
    tokens."""

    has_head: bool = False
    """The model's head has KV, too, in a context of its own."""

    @property
    def states(self) -> int:
        """The number of states of recurrent layers in each sequence, with the copies."""
        return 1 + self.rollback + self.checkpoints
