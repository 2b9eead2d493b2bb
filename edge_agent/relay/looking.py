"""Looks into a request's body to find out who answers it, before a door reads it.

A door refuses what it does not know, such as an image. Here nothing is refused: an invalid body
goes to the door, which reports what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from picospec.gateway.errors import ApiError
from picospec.gateway.schemas.json_bounds import check_structure

MEDIA: Final = frozenset(
    {"image_url", "input_audio", "audio_url", "video_url", "file"}  # of a chat
    | {"input_image", "input_file"}  # of a response
    | {"image", "document"}  # of a message
)
"""No draft model reads parts of these types."""

_MARKS: Final = tuple(f'"{kind}"'.encode() for kind in sorted(MEDIA))


class _Fields(msgspec.Struct):
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    messages: Any = None
    input: Any = None


@dataclass(frozen=True, slots=True)
class RelayedRequest:
    """A request that another service answers. model: as the request names it."""

    model: str | None
    answers: int
    has_media: bool


def relayed_request(body: bytes, models: Collection[str]) -> RelayedRequest | None:
    """Return what a request wants from another service; None if a door here answers it."""
    has_marks = any(mark in body for mark in _MARKS)
    if not (has_marks or models):
        return None
    try:
        check_structure(body)
        fields = msgspec.json.decode(body, type=_Fields)
    except (ApiError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    has_media = has_marks and (_has_media(fields.messages) or _has_media(fields.input))
    if not (has_media or fields.model in models):
        return None
    return RelayedRequest(fields.model, fields.n or 1, has_media)


def _has_media(items: object) -> bool:
    """Return True if a list contains media parts: directly, in messages, or in their parts."""
    if not isinstance(items, list):
        return False
    return any(
        isinstance(item, dict)
        and (_is_medium(item.get("type")) or _has_media(item.get("content")))
        for item in items
    )


def _is_medium(kind: object) -> bool:
    return isinstance(kind, str) and kind in MEDIA
