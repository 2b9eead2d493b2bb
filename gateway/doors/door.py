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
    """From a field of `body` to the name that it has in the client's request, where these
    differ. An error names the field as the client does."""

    instead: Callable[[str], Response] | None = None
    """Where nothing is to be generated, as when Ollama's client only loads a model: a function
    that takes the model's name and returns the whole answer."""


Read = Callable[[Body], Asked]
"""Reads a door's request. Raises InvalidRequest, by the door's names of fields."""
