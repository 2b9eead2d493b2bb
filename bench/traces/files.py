"""What the real models say, kept: one Trace a prompt, on disk as one .npz file.

A trace holds, for each position of the target's own answer, the likeliest tokens of the target
and of the draft with their logits, so that any policy can be replayed without the models. Where
the two differ it also holds what the draft would say next: that is what a chain goes on with
until the edge learns that it broke.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Logits = NDArray[np.float32]

PER_TOKEN: Final = (
    "tokens", "target_tokens", "target_logits", "draft_tokens", "draft_logits",
    "astray_tokens", "astray_confidences", "overlap",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trace:
    """n positions, the N likeliest tokens of each model at every one of them."""

    family: str
    prompt_id: str
    temperature: float
    seed: int
    prompt: Ids
    tokens: Ids
    """int32[n]: the target's answer, drawn with the shared noise."""

    target_tokens: Ids
    """int32[n, N], likeliest first."""

    target_logits: Logits
    """float32[n, N]: log p at temperature 1, over all V tokens. N = 1 where only the answer is
    known."""

    draft_tokens: Ids
    draft_logits: Logits
    astray_tokens: Ids
    """int32[n, m]: where the draft's guess is not the target's token, what the draft says after
    its own; -1 elsewhere."""

    astray_confidences: Logits
    """float32[n, m]: of these."""

    overlap: Logits
    """float32[n]: sum of min(p, q) over all V: what optimal rejection sampling accepts. NaN
    where p is not known."""

    def cut(self, tokens: int) -> Trace:
        """Return the trace of the answer's first `tokens` tokens."""
        return replace(self, **{name: getattr(self, name)[:tokens] for name in PER_TOKEN})

    def save(self, folder: Path) -> Path:
        """Write to `folder` and return the file."""
        path = folder / f"{self.prompt_id.replace('/', '_')}-{self.temperature}.npz"
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **values)
        return path

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what `save` wrote. Raises KeyError for a file that is not a trace."""
        with np.load(path) as data:
            return cls(**{f.name: _plain(data[f.name]) for f in fields(cls)})


def _plain(value: NDArray[np.generic]) -> Any:  # noqa: ANN401 - the fields have different types
    return value if value.ndim else value.item()
