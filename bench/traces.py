"""A Trace is the recorded output of real models for one prompt, stored in one .npz file.

Any policy can be replayed with a trace, without the models. Where the draft model misses the
target's token, the trace also has its next draft tokens: a chain continues with those until
the edge learns that it is broken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.long_work import root
from speculation.model_facts import TokenId

Text = Sequence[TokenId]
Ids = NDArray[np.int32]
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trace:
    """A Trace has n positions with the draft model's N likeliest tokens at every one."""

    family: str
    prompt_id: str
    temperature: float
    seed: int
    prompt: Ids
    tokens: Ids
    """The target generated this answer with the shared noise: int32[n]."""

    draft_tokens: Ids
    """The draft model has these tokens at each position: int32[n, N], likeliest first."""

    draft_logits: Logits
    """The draft tokens have this log q at temperature 1: float32[n, N]."""

    after_miss_tokens: Ids
    """These draft tokens follow one that misses; -1 elsewhere: int32[n, m]."""

    after_miss_confidences: Logits
    """These draft tokens have these confidences: float32[n, m]."""

    def save(self, folder: Path) -> Path:
        """Write the trace to `folder` and return the file."""
        path = folder / f"{self.prompt_id.replace('/', '_')}-{self.temperature}.npz"
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **values)
        return path

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a file of `save`. Raises ValueError if it is not a trace."""
        with np.load(path) as data:
            try:
                return cls(**{f.name: _plain(data[f.name]) for f in fields(cls)})
            except KeyError as error:
                raise ValueError(f"{path} is not a trace: {error}") from None


def load_folder(folder: Path, families: Collection[str]) -> list[Trace]:
    """Read the traces of some families in a folder, or of all. Raises OSError, or ValueError,
    also if there are none."""
    traces = [Trace.load(path) for path in sorted(folder.glob("*.npz"))]
    chosen = [each for each in traces if not families or root(each.family) in families]
    if not chosen:
        raise ValueError(f"no traces of these families in {folder}")
    return chosen


def _plain(value: NDArray[np.generic]) -> Any:  # noqa: ANN401 - the fields have different types
    return value if value.ndim else value.item()
