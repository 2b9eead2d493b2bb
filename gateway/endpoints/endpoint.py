"""An endpoint converts its requests to ours, and says how their answers are written.

An endpoint has a schema of its request, a function that converts such a request to a
GenerationRequest, and an Answer that writes the result. Everything between is the same for all
endpoints: keys, limits, drain, tokens, speculation and fail-over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.responses import Response

from gateway.endpoints.answer import Answer, Heading
from gateway.endpoints.request import GenerationRequest
from gateway.endpoints.sending import EventStream
from gateway.schema import RequestModel

Body = TypeVar("Body", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """Holds what a request asks for, and how its answer is written."""

    body: GenerationRequest
    id_prefix: str
    answer: Callable[[Heading], Answer]
    ignored: tuple[str, ...] = ()
    """These fields of the endpoint's own request have no effect, besides those of `body`."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Maps a field of `body` to its name in the client's request, if they differ. An error
    names the field as the client does."""

    replacement: Callable[[str], Response] | None = None
    """Takes the model's name and returns the whole answer if nothing is to be generated, as
    when Ollama's client only loads a model; None otherwise."""

    in_background: Callable[[EventStream], Response] | None = None
    """Runs an answer that outlives its connection, and returns what the request gets; None if
    the answer ends with its connection."""

    only_apart: bool = False
    """True if the client needs an answer that outlives its connection."""

    repeats: int = 1
    """The end of the answer has all log-probabilities this many times."""


Convert = Callable[[Body], EndpointRequest]
"""Converts an endpoint's request. Raises InvalidRequest with the endpoint's names of fields."""
