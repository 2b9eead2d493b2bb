"""A digest of all that shapes a target's texts. Of verifiers that have the same one, any can go
on with an answer that another one began.

What may shape a text is in it, so also the processor's features: kernels for one processor
round otherwise than those for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from picospec.models.file_hashes import FileHashes

SHAPING: Final = ("*.safetensors", "*.bin", "*.pt", "config.json", "adapter_config.json")
"""These files of a directory shape the texts of a model or an adapter. A tokenizer has a digest
of its own."""


def identity_of(*shapes: object) -> str:
    """Return the digest of values that msgspec can encode: 32 hex digits."""
    return hashlib.sha256(msgspec.json.encode(shapes, order="sorted")).hexdigest()[:32]


def weights_of(path: Path, hashes: FileHashes) -> Sequence[object]:
    """Return what tells a model's weights from all others, wherever they are: the hash of a
    file, or of all files in a directory that shape a text. Reading these takes a second for
    each gigabyte or two. Raises OSError or WrongHash."""
    if not path.is_dir():
        return ["", hashes.of(path)]
    files = sorted({file for pattern in SHAPING for file in path.glob(pattern)})
    return [(file.name, hashes.of(file)) for file in files]
