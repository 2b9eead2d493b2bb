"""Lists of what may pass in either direction; nothing else passes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from picospec.gateway.errors import InvalidRequest, NotFound, Unavailable

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""Matches a path that means the same however often it is decoded, and has no `..`."""

_QUERY: Final = re.compile(rb"[!-\"$-~]{0,2048}")
_HEADER: Final = re.compile(r"[ -~]{0,1024}")
_HEADERS: Final = (
    "accept",
    "content-type",
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
)
"""An upstream gets these headers of the client. A key and a cookie are not among them."""

AS_IT_IS: Final = ("content-length", "content-encoding")
"""These headers are right as long as a body is passed on unchanged."""

EVENTS: Final = "text/event-stream; charset=utf-8"
_TYPES: Final = {
    "application/json": "application/json",
    "application/x-ndjson": "application/x-ndjson",
    "text/event-stream": EVENTS,
    "text/plain": "text/plain; charset=utf-8",  # of a transcription
    **{kind: kind for kind in ("image/png", "image/jpeg", "image/webp", "image/gif")},
}
"""Maps the content types of answers to those that the client gets. A browser would run others,
such as HTML and SVG, as a part of this edge's page."""

_AUDIO: Final = re.compile(r"audio/[a-z0-9.-]{1,40}(?:; ?[a-z]{1,20}=[a-z0-9]{1,20}){0,3}")

SAFE: Final = {
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Each relayed answer has these headers; those of its upstream are dropped."""


def target_of(scope: Scope, patterns: Sequence[str]) -> str:
    """Return the path and query to ask an upstream for. Raises NotFound for a path that matches
    no pattern or is written with escapes; InvalidRequest for the query."""
    if not passes(scope, patterns):
        raise NotFound(f"there is no {scope['path']}")
    return f"{scope['path']}{query_of(scope)}"


def query_of(scope: Scope) -> str:
    """Return the query for an upstream, with its question mark. Raises InvalidRequest."""
    query: bytes = scope["query_string"]
    if not _QUERY.fullmatch(query):
        raise InvalidRequest("the query is too long, or has characters that no URL has")
    return f"?{query.decode()}" if query else ""


def passes(scope: Scope, patterns: Sequence[str]) -> bool:
    """Return True if the path is on the list, as it is written. A pattern may end in `/*`."""
    path: str = scope["path"]
    if not _PATH.fullmatch(path) or scope.get("raw_path", path.encode()) != path.encode():
        return False
    starts = (pattern[:-1] for pattern in patterns if pattern.endswith("/*"))
    return path in patterns or path.startswith(tuple(starts))


def headers_of(headers: Headers, *more: str) -> Mapping[str, str]:
    """Return the request headers that an upstream gets. more: names of further headers to pass
    on. Raises InvalidRequest."""
    passed = {"content-type": "application/octet-stream"}
    for name in (*_HEADERS, *more):
        if values := headers.getlist(name):
            passed[name] = ", ".join(values)
            if not _HEADER.fullmatch(passed[name]):
                raise InvalidRequest(f"the header {name} is wrong", code="invalid_header")
    return passed


def type_of(said: str, peer: str) -> str:
    """Return the content type that the client gets for an answer's type. Raises Unavailable."""
    said = said.strip().lower()
    if _AUDIO.fullmatch(said):
        return said
    if (kind := _TYPES.get(said.partition(";")[0].rstrip())) is None:
        raise Unavailable(
            f"the {peer}'s answer is of a type that is not relayed", code="type_not_relayed"
        )
    return kind
