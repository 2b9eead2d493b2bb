"""How errors look at each door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers

from picospec.gateway.doors.messages.errors import SHAPE as ANTHROPIC
from picospec.gateway.doors.ollama.answer import SHAPE as OLLAMA
from picospec.gateway.errors import OPENAI, Shape

_SHAPES: Final[Mapping[str, Shape]] = {"/v1/messages": ANTHROPIC, "/api/": OLLAMA}
"""Shapes by the paths that begin so; all other paths have OpenAI's."""


def shape_of(path: str, headers: Headers) -> Shape:
    """Return how errors look to a request for `path`."""
    if path.startswith("/v1/models") and "anthropic-version" in headers:
        return ANTHROPIC
    return next((_SHAPES[start] for start in _SHAPES if path.startswith(start)), OPENAI)
