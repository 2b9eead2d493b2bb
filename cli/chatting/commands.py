"""The command lines of `picospec chat`, `picospec run` and `picospec forget`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from random import randrange
from typing import Annotated

import httpx
import typer
from rich.console import Console
from typer import Argument, Option

from picospec.cli.chatting.client import (
    SILENCE_S,
    ChatError,
    Turn,
    client_of,
    empty_pool,
    first_model,
    stream_answer,
)
from picospec.cli.chatting.conversation import MAX_SEED, Conversation
from picospec.cli.chatting.lines import message_reader
from picospec.cli.options import EdgePort, Keys, Url, edge_url, fail, first_key, visible
from picospec.models.catalogue import user_file

app = typer.Typer()


@app.command()
def chat(
    url: Annotated[str | None, Option(help="Any OpenAI-compatible service.")] = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
    steady: Annotated[
        bool, Option(help="Show tokens that come together one after another.")
    ] = True,
) -> None:
    """Talk to the model in this terminal; /help shows how.

    Ctrl-C ends an answer, Ctrl-D the conversation.
    """
    where = partial(client_of, edge_url(url, edge_port), first_key(api_keys), SILENCE_S)
    conversation = Conversation(where, Console(), partial(randrange, MAX_SEED), steady=steady)
    conversation.run(message_reader(user_file(os.environ).parent / "chat_history"))


@app.command()
def run(
    prompt: Annotated[str, Argument(help="What is asked; what is piped in follows it.")] = "",
    system: Annotated[str, Option(help="What the model is told first.")] = "",
    seed: Annotated[int | None, Option(help="The same seed gives the same answer.")] = None,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Ask once, and print the answer: picospec run "Explain this." < file"""
    asked = question(prompt, "" if sys.stdin.isatty() else sys.stdin.read())
    if not asked:
        raise typer.BadParameter("there is nothing to ask", param_hint="PROMPT")

    async def ask(client: httpx.AsyncClient) -> None:
        harmless, put = sys.stdout.isatty(), partial(typer.echo, nl=False)
        await ask_once(client, asked, put, system=system, seed=seed, harmless=harmless)

    _connected(url, edge_port, api_keys, ask)


@app.command()
def forget(url: Url = None, edge_port: EdgePort = 8000, api_keys: Keys = "") -> None:
    """Make the edge forget the answers that it keeps for this key, to draft from."""
    _connected(url, edge_port, api_keys, empty_pool)


def _connected(
    url: str | None,
    edge_port: int,
    api_keys: str,
    ask: Callable[[httpx.AsyncClient], Awaitable[None]],
) -> None:
    """Ask the service; if that fails, end the program with the reason."""
    connect = partial(client_of, edge_url(url, edge_port), first_key(api_keys), SILENCE_S)

    async def connected() -> None:
        async with connect() as client:
            await ask(client)

    try:
        asyncio.run(connected())
    except ChatError as error:
        fail(error)


def question(prompt: str, piped: str) -> str:
    """Return the question: the prompt, then the piped text."""
    return "\n\n".join(part for part in (prompt, piped) if part.strip())


async def ask_once(
    client: httpx.AsyncClient,
    asked: str,
    put: Callable[[str], object],
    *,
    system: str = "",
    seed: int | None = None,
    harmless: bool = False,
) -> None:
    """Stream an answer to `put`, and end its last line. Raises ChatError.

    harmless: True if terminal control characters are replaced; a file may have them.
    """
    turns = [*([Turn("system", system)] if system else []), Turn("user", asked)]
    model, text = await first_model(client), ""
    async for chunk in stream_answer(client, model, turns, seed=seed):
        if chunk.text:
            text = visible(chunk.text) if harmless else chunk.text
            put(text)
    if not text.endswith("\n"):
        put("\n")
