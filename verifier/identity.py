"""An identity is a digest of everything that shapes a target's texts.

A verifier can continue an answer that another one began if both have the same identity.

It includes the processor's features, because kernels for one processor round differently from
those for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from local_models.file_hashes import FileHashes

SHAPING: Final = ("*.safetensors", "*.bin", "*.pt", "config.json", "adapter_config.json")
"""These files of a directory shape the texts of a model or an adapter. The tokenizer has its
own digest."""


def identity_of(*shapes: object) -> str:
    """Return the digest (32 hex digits) of values that msgspec can encode."""
    return hashlib.sha256(msgspec.json.encode(shapes, order="sorted")).hexdigest()[:32]


def weights_of(path: Path, hashes: FileHashes) -> Sequence[object]:
    """Return hashes that identify a model's weights wherever they are stored: of the file, or
    of all files in a directory that shape a text. Hashing takes about a second for each
    gigabyte or two. Raises OSError or WrongHash."""
    if not path.is_dir():
        return ["", hashes.of(path)]
    files = sorted({file for pattern in SHAPING for file in path.glob(pattern)})
    return [(file.name, hashes.of(file)) for file in files]
