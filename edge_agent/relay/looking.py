"""Looks into the body of a request for who is to answer it, before a door reads it.

A door refuses what it does not know, such as an image. Here nothing is refused: a body that is
wrong goes to the door, which says what is wrong with it.
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
"""Types of parts that no draft model reads."""

_MARKS: Final = tuple(f'"{kind}"'.encode() for kind in sorted(MEDIA))


class _Fields(msgspec.Struct):
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    messages: Any = None
    input: Any = None


class _Model(msgspec.Struct):
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What another service is to answer. model: as the request names it."""

    model: str | None
    answers: int
    has_media: bool


def look(body: bytes, models: Collection[str]) -> Wanted | None:
    """Return what a request wants that is not generated here, if it does."""
    has_marks = any(mark in body for mark in _MARKS)
    if not (has_marks or models):
        return None
    try:
        check_structure(body)
        named = msgspec.json.decode(body, type=_Model).model in models
        if not (named or has_marks):
            return None
        fields = msgspec.json.decode(body, type=_Fields)
    except (ApiError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    has_media = has_marks and (_has_media(fields.messages) or _has_media(fields.input))
    if not (named or has_media):
        return None
    return Wanted(fields.model, fields.n or 1, has_media)


def _has_media(items: object) -> bool:
    """Whether a list has parts of media: in it, in its messages, or in their parts."""
    if not isinstance(items, list):
        return False
    return any(
        isinstance(item, dict)
        and (_is_medium(item.get("type")) or _has_media(item.get("content")))
        for item in items
    )


def _is_medium(kind: object) -> bool:
    return isinstance(kind, str) and kind in MEDIA
