"""What an answer as a whole keeps to, where its content or its calls keep to something."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.output.style import Style
from gateway.routes.request import GenerationRequest, TokenIds
from gateway.schemas import structured


def constrained(
    body: GenerationRequest, style: Style, prompt: TokenIds, extras: Mapping[str, object]
) -> Mapping[str, object]:
    """Return the extras of a job; the same object if the answer is only content.

    Raises InvalidRequest.
    """
    content = extras.get(structured.NAME)
    given = content if isinstance(content, Mapping) else None
    constraint = body.constraint(style, prompt, given)
    if constraint is given:
        return extras
    return MappingProxyType({**extras, structured.NAME: constraint})
