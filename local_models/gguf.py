"""This module reads what a GGUF file says before its weights: metadata, which it copies and
checks, and tensors' types and sizes.

A tokenizer needs the metadata alone.

    file      = "GGUF" version:u32 tensors:u64 pairs:u64 pair*pairs ...
    pair      = key:string kind:u32 value
    string    = length:u64 bytes          array = kind:u32 count:u64 value*count

The walk over the pairs checks every length, because the bytes may come from another machine.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from local_models.errors import CannotOpen

Data = bytes | mmap.mmap

_HEADER: Final = struct.Struct("<4sIQQ")
_VERSIONS: Final = (2, 3)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SIZES: Final[Mapping[int, int]] = {
    **dict.fromkeys((0, 1, 7), 1),
    **dict.fromkeys((2, 3), 2),
    **dict.fromkeys((4, 5, 6), 4),
    **dict.fromkeys((10, 11, 12), 8),
}
"""A value of each kind has this size in bytes: integers, floats and booleans."""

_F32, _Q4_0, _Q8_0 = 0, 2, 8
"""ggml gives types of weights these numbers."""

MAX_PAIRS: Final = 4096
"""A file has at most this many pairs; those of known models have fewer than 100."""


def metadata_of(path: Path) -> bytes:
    """Return a GGUF file with the metadata of `path` and no tensors. Raises CannotOpen."""
    with _mapped(path) as data:
        return metadata_in(data)


def metadata_in(data: Data) -> bytes:
    """Return the same for the first bytes of a file. Raises ValueError if they are too few."""
    version, _, pairs = _header(data)
    return _HEADER.pack(b"GGUF", version, 0, pairs) + data[_HEADER.size : _end(data, pairs)]


def is_exact(path: Path) -> bool:
    """Return True if a row's logits are the same whatever rows share its pass.

    That needs matrices in Q8_0 or Q4_0 (local_models.llama_cpp.model). F32 matrices count only
    if there are no others, because every quantisation leaves some in F32. Raises CannotOpen.
    """
    with _mapped(path) as data:
        types = {each.kind for each in _tensors(data) if each.dimensions > 1} - {_F32}
    return bool(types) and types <= {_Q4_0, _Q8_0}


def tensor_bytes(path: Path) -> dict[str, int]:
    """Return the sizes of a file's tensors by their names, with the padding between them.
    Raises CannotOpen."""
    with _mapped(path) as data:
        tensors = list(_tensors(data))
        end = max((each.end for each in tensors), default=0)
        starts = {each.name: each.offset for each in tensors}
        order = sorted(starts, key=lambda name: starts[name])
        total = len(data) - end
        ends = [*(starts[name] for name in order[1:]), total]
        return {name: stop - starts[name] for name, stop in zip(order, ends, strict=True)}


def check_metadata(data: bytes) -> None:
    """Raise ValueError unless `data` is a complete GGUF file without tensors."""
    _, tensors, pairs = _header(data)
    if tensors or _end(data, pairs) != len(data):
        raise ValueError("a tokenizer has no tensors, and nothing after its metadata")


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file into memory; raise errors with it in the body as CannotOpen."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            yield data
    except (OSError, ValueError, struct.error) as error:
        raise CannotOpen(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dimensions: int
    kind: int
    offset: int
    end: int
    """The description of the tensor ends here in the file."""


def _tensors(data: Data) -> Iterator[_Tensor]:
    """Yield the descriptions of the tensors."""
    _, tensors, pairs = _header(data)
    at = _end(data, pairs)
    for _ in range(tensors):
        start, at = at + _U64.size, _after_string(data, at)
        name = data[start:at].decode(errors="replace")
        (dimensions,) = _U32.unpack_from(data, at)
        at = _within(data, at + _U32.size + dimensions * _U64.size)
        (kind,) = _U32.unpack_from(data, at)
        (offset,) = _U64.unpack_from(data, at + _U32.size)
        at = _within(data, at + _U32.size + _U64.size)
        yield _Tensor(name, dimensions, kind, offset, at)


def _header(data: Data) -> tuple[int, int, int]:
    """Return the version, the number of tensors and the number of pairs."""
    if len(data) < _HEADER.size:
        raise ValueError("no GGUF file")
    magic, version, tensors, pairs = _HEADER.unpack_from(data)
    if magic != b"GGUF" or version not in _VERSIONS or pairs > MAX_PAIRS:
        raise ValueError("no GGUF file that can be read")
    return version, tensors, pairs


def _end(data: Data, pairs: int) -> int:
    """Return the offset after the last pair."""
    at = _HEADER.size
    try:
        for _ in range(pairs):
            at = _after_string(data, at)
            (kind,) = _U32.unpack_from(data, at)
            at = _after_value(data, at + _U32.size, kind)
    except struct.error:
        raise ValueError("the metadata is cut") from None
    return at


def _after_value(data: Data, at: int, kind: int) -> int:
    if kind == _STRING:
        return _after_string(data, at)
    if kind != _ARRAY:
        return _within(data, at + _size(kind))
    (kind,), (count,) = _U32.unpack_from(data, at), _U64.unpack_from(data, at + _U32.size)
    at += _U32.size + _U64.size
    if kind != _STRING:
        return _within(data, at + count * _size(kind))
    if count > len(data) // _U64.size:
        raise ValueError("an array is longer than the file")
    for _ in range(count):
        at = _after_string(data, at)
    return at


def _after_string(data: Data, at: int) -> int:
    (length,) = _U64.unpack_from(data, at)
    return _within(data, at + _U64.size + length)


def _within(data: Data, at: int) -> int:
    if at > len(data):
        raise ValueError("the metadata is cut")
    return at


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"no value has the kind {kind}")
    return _SIZES[kind]
