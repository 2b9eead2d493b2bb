"""Codecs that write and read single fields, and combinators of codecs.

A read raises MalformedFrame for bytes that `write` cannot have produced.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec

from speculation.errors import LocalProtocolError, MalformedFrame
from speculation.untrusted import Malformed, decode_json

MAX_VARINT_BYTES: Final = 9  # 63 bits

T = TypeVar("T")


@dataclass(slots=True)
class Reader:
    """A cursor over the body of one frame."""

    data: bytes
    offset: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.offset

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.fail(f"{count} bytes wanted, {self.left} left")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def fail(self, reason: str) -> MalformedFrame:
        return MalformedFrame(reason, offset=self.offset)


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    write: Callable[[T], bytes]
    read: Callable[[Reader], T]


_ONE_BYTE: Final = [bytes([value]) for value in range(0x80)]


def _write_uint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
        raise LocalProtocolError(f"{value} does not fit a varint")
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_uint(reader: Reader) -> int:
    data, at, value, shift = reader.data, reader.offset, 0, 0
    end = min(len(data), at + MAX_VARINT_BYTES)
    while at < end:
        byte = data[at]
        at += 1
        if byte < 0x80:
            reader.offset = at
            if byte == 0 and shift:
                raise reader.fail("a varint longer than its value needs")
            return value | byte << shift
        value |= (byte & 0x7F) << shift
        shift += 7
    reader.offset = at
    if shift < 7 * MAX_VARINT_BYTES:
        raise reader.fail("1 bytes wanted, 0 left")
    raise reader.fail(f"a varint of more than {MAX_VARINT_BYTES} bytes")


def read_uints(data: bytes) -> list[int] | None:
    """Return the varints that `data` consists of; None if it does not consist of varints."""
    if data.isascii():
        return list(data)
    numbers, value, shift = list[int](), 0, 0
    for byte in data:
        if byte >= 0x80 and shift < 7 * (MAX_VARINT_BYTES - 1):
            value |= (byte & 0x7F) << shift
            shift += 7
        elif byte >= 0x80 or (byte == 0 and shift):
            return None
        else:
            numbers.append(value | byte << shift)
            value = shift = 0
    return None if shift else numbers


def _write_word(value: int) -> bytes:
    if not 0 <= value < 1 << 64:
        raise LocalProtocolError(f"{value} does not fit a word")
    return value.to_bytes(8, "little")


def _read_float(reader: Reader) -> float:
    value: float = struct.unpack("<f", reader.take(4))[0]
    if not math.isfinite(value):
        raise reader.fail("a number that is not finite")
    return value


def _read_text(reader: Reader) -> str:
    try:
        return reader.take(_read_uint(reader)).decode()
    except UnicodeDecodeError:
        raise reader.fail("text that is not UTF-8") from None


def _write_text(value: str) -> bytes:
    data = value.encode()
    return _write_uint(len(data)) + data


UINT = Codec(_write_uint, _read_uint)
WORD: Codec[int] = Codec(_write_word, lambda reader: int.from_bytes(reader.take(8), "little"))
FLOAT32: Codec[float] = Codec(partial(struct.pack, "<f"), _read_float)
TENTH_MS: Codec[float] = Codec(
    lambda s: _write_uint(max(0, round(s * 10_000))), lambda reader: _read_uint(reader) / 10_000
)
TEXT = Codec(_write_text, _read_text)
BOOL: Codec[bool] = Codec(lambda value: bytes([value]), lambda r: one_of((False, True)).read(r))


def constant(value: T) -> Codec[T]:
    """A field whose value follows from the frame's type, so it takes no bytes."""
    return Codec(lambda _: b"", lambda _: value)


def one_of(values: tuple[T, ...]) -> Codec[T]:
    """A choice, written as its index."""

    def read(reader: Reader) -> T:
        index = _read_uint(reader)
        if index >= len(values):
            raise reader.fail(f"choice {index} of {len(values)}")
        return values[index]

    return Codec(lambda value: _write_uint(values.index(value)), read)


def many(item: Codec[T]) -> Codec[tuple[T, ...]]:
    """A count and as many items; a count too large fails at the first byte missing."""
    return Codec(
        lambda values: _write_uint(len(values)) + b"".join(map(item.write, values)),
        lambda reader: tuple(item.read(reader) for _ in range(_read_uint(reader))),
    )


def rest(item: Codec[T]) -> Codec[tuple[T, ...]]:
    """Items up to the end of the frame."""

    def items(reader: Reader) -> Iterator[T]:
        while reader.left:
            yield item.read(reader)

    return Codec(lambda values: b"".join(map(item.write, values)), lambda r: tuple(items(r)))


def maybe(item: Codec[T]) -> Codec[T | None]:
    """An item that may be absent: a byte before it is 1 if it follows, else 0."""
    return Codec(
        lambda value: b"\0" if value is None else b"\1" + item.write(value),
        lambda reader: item.read(reader) if BOOL.read(reader) else None,
    )


def pair(first: Codec[Any], second: Codec[Any]) -> Codec[tuple[Any, Any]]:
    """Two fields, one after the other."""
    return Codec(
        lambda value: first.write(value[0]) + second.write(value[1]),
        lambda reader: (first.read(reader), second.read(reader)),
    )


def json(kind: type[T]) -> Codec[T]:
    """A msgspec Struct as JSON text, for values sent once that grow with the targets."""

    def read(reader: Reader) -> T:
        try:
            return decode_json(_read_text(reader), kind)
        except Malformed as error:
            raise reader.fail(f"{kind.__name__}: {error}") from None

    return Codec(lambda value: _write_text(msgspec.json.encode(value).decode()), read)


def form(pattern: str) -> Codec[str]:
    """A text that matches the pattern, such as one that becomes a part of a path."""
    wanted = re.compile(pattern, re.ASCII)

    def read(reader: Reader) -> str:
        if not wanted.fullmatch(text := _read_text(reader)):
            raise reader.fail(f"a text that is not {pattern}")
        return text

    return Codec(_write_text, read)


def bounded(fields: Codec[T], kind: type[T]) -> Codec[T]:
    """A msgspec Struct whose fields are checked against their bounds."""

    def read(reader: Reader) -> T:
        try:
            return msgspec.convert(msgspec.to_builtins(fields.read(reader)), kind)
        except msgspec.ValidationError as error:
            raise reader.fail(f"{kind.__name__}: {error}") from None

    return Codec(fields.write, read)


def record(kind: type[T], **fields: Codec[Any]) -> Codec[T]:
    """The fields of a message, one after another; unnamed fields keep their defaults."""
    return Codec(
        lambda value: b"".join(c.write(getattr(value, name)) for name, c in fields.items()),
        lambda reader: kind(**{name: codec.read(reader) for name, codec in fields.items()}),
    )
