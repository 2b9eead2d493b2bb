"""The records of an upload stream: a session's name, and frames of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from speculation.codecs import MAX_VARINT_BYTES, TEXT, UINT, Reader
from speculation.errors import LocalProtocolError, MalformedFrame
from speculation.wire import SESSION

MAX_RECORD_BYTES: Final = 1 << 16
"""A record of an upload stream has at most this many bytes: thousands of draft tokens."""

ASK: Final = b"\0"
"""This record of no bytes asks for an acknowledgement of the records before it. If the answer
consists of records too, it also is the acknowledgement."""

ACKNOWLEDGED: Final = b"\6"
"""A verifier answers each record that asks with this byte, if its answer has no records."""


@dataclass(frozen=True, slots=True)
class Record:
    """A part of an upload stream or of its answer: frames of one session's messages. Without a
    session it asks for an acknowledgement, or is one.

    Without frames it asks on the way up that the session's messages come down this stream, and
    on the way down it is the session's last record.

    record = length session frames    length: varint, bytes of the session's name and the frames
    """

    session: str = ""
    frames: bytes = b""


def encode_record(session: str, frames: bytes = b"") -> bytes:
    """Return one record. Raise LocalProtocolError for one too large to send."""
    body = TEXT.write(session) + frames
    if len(body) > MAX_RECORD_BYTES:
        raise LocalProtocolError(f"a record of {len(body)} bytes, over {MAX_RECORD_BYTES}")
    return UINT.write(len(body)) + body


class RecordDecoder:
    """Cuts an upload stream into records. It holds at most one unfinished record."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield each record that `data` completes; raise MalformedFrame for anything else."""
        reader, begin = Reader(self._rest + data), 0
        while (length := self._length(reader, begin)) is not None and length <= reader.left:
            begin = reader.offset + length
            yield _record(Reader(reader.take(length))) if length else Record()
        self._rest = reader.data[begin:]

    def _length(self, reader: Reader, begin: int) -> int | None:
        """Read the length of the record that begins there; return None if bytes are missing."""
        try:
            length = UINT.read(reader)
        except MalformedFrame:
            if len(reader.data) - begin >= MAX_VARINT_BYTES:
                raise
            return None
        if length > MAX_RECORD_BYTES:
            raise reader.fail(f"a record of {length} bytes, over {MAX_RECORD_BYTES}")
        return length


def _record(reader: Reader) -> Record:
    return Record(SESSION.read(reader), reader.take(reader.left))
