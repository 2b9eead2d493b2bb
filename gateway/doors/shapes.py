"""How errors look at each door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers

from picospec.gateway.errors import ApiError, Shape

_SHAPES: Final[Mapping[str, Shape]] = {}
"""Shapes by the paths that begin so; all other paths have OpenAI's."""


def shape_of(path: str, headers: Headers) -> Shape:
    """Return how errors look to a request for `path`."""
    return next((_SHAPES[start] for start in _SHAPES if path.startswith(start)), ApiError.body)
