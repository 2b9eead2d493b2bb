"""The real openai SDK as a client of the API, which uvicorn serves on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from tests.gateway.scripted import ScriptedEngine, make_app, served


@asynccontextmanager
async def sdk(engine: ScriptedEngine, **settings: object) -> AsyncIterator[AsyncOpenAI]:
    """Give a client of an app of its own, whose key is "k"."""
    async with (
        served(make_app(engine, **settings)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        yield client


def writes(text: str, **more: Any) -> ScriptedEngine:  # noqa: ANN401 - ScriptedEngine's
    """Return a model that writes a text, three bytes a Delta."""
    data = text.encode()
    return ScriptedEngine([data[at : at + 3] for at in range(0, len(data), 3)], **more)
