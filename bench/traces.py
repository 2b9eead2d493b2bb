"""What the real models say, kept: one Trace a prompt, on disk as one .npz file.

A trace holds, for each position of the target's own answer, the likeliest tokens of the target
and of the draft with their logits, so that any policy can be replayed without the models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Logits = NDArray[np.float32]


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
    overlap: Logits
    """float32[n]: sum of min(p, q) over all V: what optimal rejection sampling accepts. NaN
    where p is not known."""

    def cut(self, tokens: int) -> Trace:
        """Return the trace of the answer's first `tokens` tokens."""
        per_token = ("tokens", "target_tokens", "target_logits", "draft_tokens", "draft_logits")
        kept = {name: getattr(self, name)[:tokens] for name in (*per_token, "overlap")}
        return replace(self, **kept)

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
