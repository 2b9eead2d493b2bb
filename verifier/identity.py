"""A digest of all that shapes a target's texts. Of verifiers that have the same one, any can go
on with an answer that another one began.

What may shape a text is in it, so also the processor's features: kernels for one processor
round otherwise than those for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

SAMPLES: Final = 256
"""Places of a file that are read. Every layer of a model has some, so that a model that was
trained further differs, though it has the same size."""

SAMPLE_BYTES: Final = 4096


def identity_of(*shapes: object) -> str:
    """Return the digest of values that msgspec can encode: 32 hex digits."""
    return hashlib.sha256(msgspec.json.encode(shapes, order="sorted")).hexdigest()[:32]


def weights_of(path: Path) -> Sequence[object]:
    """Return what tells a model's weights from others: of a file, or of all files of weights in
    a directory. It takes milliseconds, where reading a large model takes minutes."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return [(file.name if path.is_dir() else "", *_sampled(file)) for file in files]


def _sampled(file: Path) -> tuple[int, str]:
    """Return a file's size, and the digest of samples of it, head and end included."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as opened:
        for offset in _offsets(size):
            opened.seek(offset)
            digest.update(opened.read(SAMPLE_BYTES))
    return size, digest.hexdigest()


def _offsets(size: int) -> Iterable[int]:
    last = max(0, size - SAMPLE_BYTES)
    return (last * i // (SAMPLES - 1) for i in range(SAMPLES))
