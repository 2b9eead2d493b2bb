"""Whether a row's logits of a GGUF file are the same whatever rows share its pass.

models.llama says what this needs of the weights. Only a file's header is read, in some 0.2 s.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from models.errors import CannotOpen

_F32, _Q4_0, _Q8_0 = 0, 2, 8
"""Types of weights in ggml's numbers."""

_STRING, _ARRAY = 8, 9
"""Kinds of metadata that have no fixed size, in GGUF's numbers."""

_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each other kind of metadata."""


def is_exact(path: Path) -> bool:
    """Return whether all matrices are Q8_0 or Q4_0. Raises CannotOpen for another file.

    Those in F32 do not count unless there are no others: any quantisation leaves some so.
    """
    try:
        with path.open("rb") as file, _mapped(file) as data:
            kinds = set(_Header(data).matrices()) - {_F32}
    except (OSError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise CannotOpen(f"{path} is missing, or is not a GGUF file: {error}") from error
    return bool(kinds) and kinds <= {_Q4_0, _Q8_0}


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Header:
    """Reads a GGUF file from its beginning; ggml's docs/gguf.md has the format."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")

    def matrices(self) -> Iterator[int]:
        """Yield the type of each tensor that has more than one dimension."""
        self._at = 8  # after the version
        tensors, entries = self._next("Q"), self._next("Q")
        for _ in range(entries):
            self._skip(_STRING)
            self._skip(self._next("I"))
        for _ in range(tensors):
            self._skip(_STRING)
            dimensions = self._next("I")
            self._at += 8 * dimensions
            kind = self._next("I")
            self._at += 8  # its offset
            if dimensions > 1:
                yield kind

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            length = self._next("Q")
            self._at += length
        elif kind == _ARRAY:
            of, count = self._next("I"), self._next("Q")
            if size := _SIZES.get(of):
                self._at += size * count
            else:
                for _ in range(count):
                    self._skip(of)
        else:
            self._at += _SIZES[kind]

    def _next(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)
