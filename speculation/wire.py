"""Messages are encoded as length-prefixed frames, and cut from a stream and decoded again, by
the table LAYOUTS.

    frame   = length type body       length: varint, bytes of type and body together
    varint  = LEB128, unsigned, at most 9 bytes
    body    = the message's fields in the order of LAYOUTS, each as its codec writes it

A frame holds at most MAX_FRAME_BYTES; a longer one is rejected before it is buffered.
Decoding raises for bytes that encoding cannot have produced: unknown types, short or surplus
bytes. `docs/protocol.md` gives each layout with an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar, get_args

from speculation import messages, model_facts
from speculation.codecs import (
    BOOL,
    FLOAT32,
    MAX_VARINT_BYTES,
    TENTH_MS,
    TEXT,
    UINT,
    WORD,
    Codec,
    Reader,
    bounded,
    constant,
    form,
    json,
    many,
    maybe,
    one_of,
    pair,
    read_uints,
    record,
    rest,
)
from speculation.errors import LocalProtocolError, MalformedFrame
from speculation.messages import Commit, Draft, Message

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
LIMITS = record(model_facts.Limits, max_verify=UINT, max_ahead=UINT, idle_timeout_s=FLOAT32)
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
        max_tokens=UINT, stop_tokens=many(UINT), judge=one_of(get_args(model_facts.Judge)),
        fill=one_of(get_args(messages.Fill)), top_logprobs=maybe(UINT), ngram_drafts=BOOL,
        predicted=many(UINT), replaces=TEXT, rejected=BOOL,
    ),
    7: record(messages.Recovered, epoch=UINT, position=UINT, token=UINT),
    16: record(messages.Opened, session=SESSION, limits=bounded(LIMITS, model_facts.Limits)),
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
