"""`picospec run`: one question, whose answer is all that standard output gets."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from picospec.cli.chatting.client import Turn, first_model, stream_answer
from picospec.cli.visible import visible


def question(prompt: str, piped: str) -> str:
    """Return what is asked: the prompt, then what was piped in."""
    return "\n\n".join(part for part in (prompt, piped) if part.strip())


async def run(
    client: httpx.AsyncClient,
    asked: str,
    put: Callable[[str], object],
    *,
    system: str = "",
    seed: int | None = None,
    harmless: bool = False,
) -> None:
    """Stream an answer to `put`, and end its last line. Raises ChatError.

    harmless: whether what orders a terminal about is replaced, which a file may have.
    """
    told = [Turn("system", system)] if system else []
    model, text = await first_model(client), ""
    async for chunk in stream_answer(client, model, [*told, Turn("user", asked)], seed=seed):
        if chunk.text:
            text = visible(chunk.text) if harmless else chunk.text
            put(text)
    if not text.endswith("\n"):
        put("\n")
