"""Packs the messages of sessions for the way between the API server and vLLM's core.

Both processes run the same code, so the compact frames of `speculation.wire`, which takes ten
times as long, are for edges alone: the API server writes and reads them.

A packed message is the number of its type, in one byte, and its fields as msgpack.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Finish,
    Message,
    Recovered,
    Redraw,
    Reject,
)

_TYPES: Final = (Draft, Recovered, Redraw, CachedPromptTokens, Commit, Reject, Finish)
_NUMBERS: Final = {each: bytes([number]) for number, each in enumerate(_TYPES)}
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODERS: Final = [msgspec.msgpack.Decoder[Any](each) for each in _TYPES]


def packed(message: Message) -> bytes:
    """Return the message in a type that vLLM can carry. Raises KeyError for a type of message
    that belongs to the link alone."""
    return _NUMBERS[type(message)] + _ENCODER.encode(message)


def unpacked(data: bytes) -> Message:
    """Return the message that was packed."""
    message: Message = _DECODERS[data[0]].decode(memoryview(data)[1:])
    return message
