"""Messages as bytes: codecs of single fields, and the frames that a table makes of them."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec

from speculation import messages
from speculation.messages import (
    Commit,
    Draft,
    LocalProtocolError,
    MalformedFrame,
    Message,
)
from speculation.untrusted import Malformed, decode_json

# Codecs that write and read single fields, and combinators of codecs.
#
# A read raises MalformedFrame for bytes that `write` cannot have produced.

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


# Messages as bytes: length-prefixed frames of varints, which the table LAYOUTS describes.
#
#     frame   = length type body       length: varint, bytes of type and body together
#     varint  = LEB128, unsigned, at most 9 bytes
#     body    = the message's fields in the order of LAYOUTS, each as its codec writes it
#
# A frame holds at most MAX_FRAME_BYTES; a longer one is rejected before it is buffered.
# Decoding raises for bytes that encoding cannot have produced: unknown types, short or surplus
# bytes. `docs/protocol.md` gives each layout with an example.

MAX_FRAME_BYTES: Final = 1 << 22
"""A frame has at most this many bytes: a text of a million tokens fits."""

MAX_DOWN_BYTES: Final = 1 << 16
"""An edge rejects longer frames. A Commit of MAX_VERIFY + 1 tokens, each with twenty
log-probabilities, takes 40 kB."""

NEAR: Final = 32
"""If fewer draft tokens than this are behind a Draft's start, its type encodes their number and
`pauses`, which saves two bytes in nearly every Draft."""

NEAR_DRAFT: Final = 64
"""The types from this on are those of such Drafts."""

PLAIN_COMMIT: Final = 17
"""A Commit without log-probabilities has this type."""

Fields = dict[str, Codec[Any]]
CHAIN: Final[Fields] = {"epoch": UINT, "start": UINT}
DRAFT: Final[Fields] = {**CHAIN, "offset": UINT}
TIMES: Final[Fields] = {"queue_s": TENTH_MS, "pass_s": TENTH_MS}
COMMIT: Final[Fields] = {**CHAIN, "accepted": UINT, "verifier_accepted": UINT, **TIMES}
SPARSE = many(pair(UINT, FLOAT32))
LOGPROB = record(messages.TokenLogprob, logprob=FLOAT32, top=SPARSE)
COUNTS: Final[Fields] = {"passes": UINT, "judged": UINT, "accepted": UINT, "filled": UINT}
TOTALS = record(messages.Totals, **COUNTS, verifier_accepted=UINT)
LIMITS = record(messages.Limits, max_verify=UINT, max_ahead=UINT, idle_timeout_s=FLOAT32)
SESSION = form("[A-Za-z0-9_-]{1,64}")
"""The name of a session has this form, because it becomes a part of paths."""


def _near(kind: int) -> Codec[Draft]:
    pauses, offset = divmod(kind - NEAR_DRAFT, NEAR)
    known: Fields = {"offset": constant(offset), "pauses": constant(bool(pauses))}
    return record(Draft, **CHAIN, **known, tokens=rest(UINT))


LAYOUTS: Final[dict[int, Codec[Any]]] = {
    2: record(Draft, **DRAFT, tokens=rest(UINT)),
    3: record(Draft, **DRAFT, pauses=BOOL, tokens=many(UINT), q=many(UINT)),
    4: record(messages.Redraw, epoch=UINT, position=UINT, draw=UINT),
    5: record(Draft, **DRAFT, pauses=constant(True), tokens=rest(UINT)),
    6: record(
        messages.Open, version=UINT, model=TEXT, vocabulary=TEXT, identity=TEXT,
        prompt=many(UINT), committed=many(UINT), sampling=json(messages.Sampling), seed=WORD,
        max_tokens=UINT, stop_tokens=many(UINT), judge=one_of(get_args(messages.Judge)),
        fill=one_of(get_args(messages.Fill)), top_logprobs=maybe(UINT), ngram_drafts=BOOL,
        predicted=many(UINT), replaces=TEXT, rejected=BOOL,
    ),
    7: record(messages.Recovered, epoch=UINT, position=UINT, token=UINT),
    16: record(messages.Opened, session=SESSION, limits=bounded(LIMITS, messages.Limits)),
    PLAIN_COMMIT: record(Commit, **COMMIT, tokens=rest(UINT)),
    18: record(Commit, **COMMIT, tokens=many(UINT), logprobs=many(LOGPROB)),
    19: record(
        messages.Reject, epoch=UINT, position=UINT, draw=UINT,
        head=SPARSE, tail_mass=FLOAT32, tail=SPARSE,
    ),
    20: record(messages.Finish, reason=one_of(get_args(messages.FinishReason)), totals=TOTALS),
    21: record(messages.Fault, code=TEXT, text=TEXT, retryable=BOOL),
    22: record(messages.Heartbeat),
    23: record(messages.CachedPromptTokens, tokens=UINT),
    24: record(messages.Multiplexed),
    **{kind: _near(kind) for kind in range(NEAR_DRAFT, NEAR_DRAFT + 2 * NEAR)},
}  # fmt: skip

ONLY_LAYOUTS: Final[dict[type[Message], int]] = {
    messages.Open: 6, messages.Redraw: 4, messages.Recovered: 7, messages.Opened: 16,
    messages.Reject: 19, messages.Finish: 20, messages.Fault: 21, messages.Heartbeat: 22,
    messages.CachedPromptTokens: 23, messages.Multiplexed: 24,
}  # fmt: skip


def _layout_of(message: Message) -> int:
    match message:
        case Draft(q=None, pauses=pauses, offset=offset) if offset < NEAR:
            return NEAR_DRAFT + NEAR * pauses + offset
        case Draft(q=None, pauses=pauses):
            return 5 if pauses else 2
        case Draft():
            return 3
        case Commit():
            return PLAIN_COMMIT if message.logprobs is None else 18
    return ONLY_LAYOUTS[type(message)]


def encode(message: Message) -> bytes:
    """Return one frame. Raise LocalProtocolError for a message too large to send."""
    layout = _layout_of(message)
    if (numbers := _numbers(message, layout)) is not None:
        body = b"".join([UINT.write(number) for number in numbers])
    else:
        body = UINT.write(layout) + LAYOUTS[layout].write(message)
    if len(body) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"a frame of {len(body)} bytes, over {MAX_FRAME_BYTES}")
    return UINT.write(len(body)) + body


def _numbers(message: Message, layout: int) -> list[int] | None:
    """Return the varints of a frequent message, which consists of nothing else, with its type;
    None for another message. LAYOUTS writes the same bytes, in five times the time."""
    if layout >= NEAR_DRAFT and isinstance(message, Draft):
        return [layout, message.epoch, message.start, *message.tokens]
    if layout == PLAIN_COMMIT and isinstance(message, Commit):
        queue, passed = (max(0, round(s * 10_000)) for s in (message.queue_s, message.pass_s))
        counts = (message.epoch, message.start, message.accepted, message.verifier_accepted)
        return [layout, *counts, queue, passed, *message.tokens]
    return None


M_co = TypeVar("M_co", bound=Message, covariant=True)


class Framed(Generic[M_co]):
    """A message together with its frame, which is encoded at most once, when first needed."""

    __slots__ = ("_frame", "message")

    def __init__(self, message: M_co, frame: bytes | None = None) -> None:
        self.message = message
        self._frame = frame

    @property
    def frame(self) -> bytes:
        if self._frame is None:
            self._frame = encode(self.message)
        return self._frame


class Decoder:
    """Cuts a byte stream into messages. It holds at most one unfinished frame."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield each message that `data` completes; raise MalformedFrame for anything else."""
        return (framed.message for framed in self.frames(data))

    def frames(self, data: bytes) -> Iterator[Framed[Message]]:
        """Yield the same messages together with their frames."""
        kept, at = self._buffer, 0
        if kept:
            kept += data
        source = kept or data
        try:
            while at < len(source) and (cut := self._cut(source, at)):
                body_at, start, at = cut[0], at, cut[1]
                yield Framed(_decode(bytes(source[body_at:at])), bytes(source[start:at]))
        finally:
            if source is kept:
                del kept[:at]
            else:
                kept += source[at:]

    def close(self) -> None:
        """Declare the stream ended. Raise MalformedFrame if it ends inside a frame."""
        if self._buffer:
            raise MalformedFrame("the stream ends inside a frame", offset=len(self._buffer))

    def _cut(self, data: bytes | bytearray, start: int) -> tuple[int, int] | None:
        """Return where the body of the frame at `start` begins and ends; None if it has not
        come whole."""
        left = len(data) - start
        if left > 1 and 0 < (length := data[start]) < min(left, 0x80, self._max_bytes + 1):
            return start + 1, start + 1 + length
        head = Reader(bytes(data[start : start + MAX_VARINT_BYTES]))
        try:
            length = UINT.read(head)
        except MalformedFrame:
            if head.left or len(head.data) >= MAX_VARINT_BYTES:
                raise
            return None
        if not 1 <= length <= self._max_bytes:
            raise head.fail(f"a frame of {length} bytes, not 1 to {self._max_bytes}")
        body_at = start + head.offset
        end = body_at + length
        return None if len(data) < end else (body_at, end)


def _decode(body: bytes) -> Message:
    if (frequent := _frequent(body)) is not None:
        return frequent
    reader = Reader(body)
    if (kind := UINT.read(reader)) not in LAYOUTS:
        raise reader.fail(f"no message has type {kind}")
    message: Message = LAYOUTS[kind].read(reader)
    if reader.left:
        raise reader.fail(f"{reader.left} surplus bytes after a {type(message).__name__}")
    return message


def _frequent(body: bytes) -> Message | None:
    """Return the message that `_numbers` wrote; None for any other body, malformed ones too."""
    kind = body[0]
    if not (NEAR_DRAFT <= kind < 0x80 or kind == PLAIN_COMMIT):
        return None
    numbers = read_uints(body)
    if numbers is None:
        return None
    if kind == PLAIN_COMMIT:
        if len(numbers) < 7:
            return None
        _, epoch, start, accepted, verifier_accepted, queue, passed, *tokens = numbers
        times = queue / 10_000, passed / 10_000
        return Commit(epoch, start, tuple(tokens), accepted, verifier_accepted, *times)
    if len(numbers) < 3:
        return None
    _, epoch, start, *tokens = numbers
    pauses, offset = divmod(kind - NEAR_DRAFT, NEAR)
    return Draft(epoch, start, offset, tuple(tokens), None, bool(pauses))


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
