"""What a request at a door means.

A door has a schema of its request, a function that reads such a request as the one kind that is
answered, and the answer that writes the result. Everything between is the same behind all
doors: keys, limits, drain, tokens, speculation and fail-over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.responses import Response

from picospec.gateway.doors.answer import AnswerMaker
from picospec.gateway.doors.request import GenerationRequest
from picospec.gateway.schemas.base import RequestModel

Body = TypeVar("Body", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, and how its answer is written."""

    body: GenerationRequest
    id_prefix: str
    answer: AnswerMaker
    ignored: tuple[str, ...] = ()
    """Fields of the door's own request that have no effect, besides those of `body`."""

    names: Mapping[str, str] = field(default_factory=dict)
    """The door's names of fields, by those of `body`, where they differ. Errors have them."""

    instead: Callable[[str], Response] | None = None
    """Makes the answer of the model's name, where nothing is to be generated."""


Read = Callable[[Body], Asked]
"""Reads a door's request. Raises InvalidRequest, by the door's names of fields."""
