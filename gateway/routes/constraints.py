"""What an answer as a whole keeps to, where its content or its calls keep to something."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import MappingProxyType

from gateway.errors import InvalidRequest
from gateway.output.style import Style
from gateway.ports import Delta, Engine, Job
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


async def generate_calls(engine: Engine, job: Job) -> AsyncGenerator[Delta]:
    """Generate an answer with calls. Where its constraint is wrong, the error names the tools,
    of which it was made."""
    try:
        async with aclosing(engine.generate(job)) as deltas:
            async for delta in deltas:
                yield delta
    except InvalidRequest as error:
        if not (error.param or "").startswith(structured.NAME):
            raise
        reason = error.message.removeprefix(f"{structured.NAME}: ")
        message = f"tools: no grammar can be made of their schemas: {reason}"
        raise InvalidRequest(message, param="tools") from error
