"""Decodes bytes that another process has written, whatever they are.

Such bytes may be cut, nested deeply or full of huge numbers, and what decodes them has an error
of its own for each. Here each of them is one named error, which is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Malformed(ValueError):
    """The bytes, or a value that was made of them, are not what they should be."""


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """Return the value of a JSON text, as `msgspec` reads it. kind: its type; `object` stands
    for any. Raises Malformed."""
    return _named(lambda: msgspec.json.decode(data, type=kind))


def decode_msgpack(data: bytes, kind: type[T]) -> T:
    """Return the value of MessagePack's bytes. Raises Malformed."""
    return _named(lambda: msgspec.msgpack.decode(data, type=kind))


def encode_json(value: object) -> bytes:
    """Return a decoded value as JSON again. What could be decoded may nest too deeply for this,
    as it is done further down the stack. Raises Malformed."""
    return _named(lambda: msgspec.json.encode(value))


def _named(convert: Callable[[], T]) -> T:
    try:
        return convert()
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(str(error)) from error
