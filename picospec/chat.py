"""The command lines of `picospec chat`, `picospec run` and `picospec forget`."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from random import randrange
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console
from typer import Argument, Option

from local_models.user_catalogue import user_file
from picospec.chat_client import (
    CHAT,
    SILENCE_S,
    ChatError,
    Turn,
    chosen,
    client_of,
    empty_answer_cache,
    model_to_ask,
    models_of,
    stream_answer,
)
from picospec.command_parts import EdgePort, Keys, Url, edge_url, fail, first_key, visible
from picospec.conversation import MAX_SEED, Conversation
from picospec.message_input import message_reader

app = typer.Typer()

_MODEL: Final = re.compile(r"[a-z][\w.-]*\d[\w.-]*(:[\w.-]+)?|[\w.-]+/[\w.-]+(:[\w.-]+)?", re.I)
"""A prompt of this form is the name of a model, as of `ollama run`: it has a digit or a slash,
and no space."""


@app.command()
def chat(
    url: Annotated[str | None, Option(help="Any OpenAI-compatible service.")] = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
    model: Annotated[str | None, Option(help="Of several, the one that answers.")] = None,
) -> None:
    """Talk to the model in this terminal; /help shows how.

    Ctrl-C ends an answer, Ctrl-D the conversation.
    """
    where = partial(client_of, edge_url(url, edge_port), first_key(api_keys), SILENCE_S)

    async def check(client: httpx.AsyncClient) -> None:
        chosen(await models_of(client), model)

    ask_service(url, edge_port, api_keys, check)  # says it at once if nobody answers
    conversation = Conversation(where, Console(), partial(randrange, MAX_SEED), model)
    conversation.run(message_reader(user_file(os.environ).parent / "chat_history"))


@app.command()
def run(
    prompt: Annotated[str, Argument(help="What is asked; what is piped in follows it.")] = "",
    asked: Annotated[str, Argument(help="The same, if a model's name is first.")] = "",
    system: Annotated[str, Option(help="What the model is told first.")] = "",
    seed: Annotated[int | None, Option(help="The same seed gives the same answer.")] = None,
    model: Annotated[str | None, Option(help="Of several, the one to ask.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="The answer ends here.")] = None,
    temperature: Annotated[
        float | None, Option(min=0, help="0: the likeliest text. Default: the model's.")
    ] = None,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Ask once, and print the answer: picospec run "Explain this." < file

    A model's name may be first; if it is alone, a chat begins: picospec run qwen2.5-coder
    """
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    if asked or (model is None and _MODEL.fullmatch(prompt)):
        if model is not None:
            raise typer.BadParameter(f"--model names {model} already", param_hint="PROMPT")
        model, prompt = prompt, asked
        if not (prompt or piped):
            return chat(url, edge_port, api_keys, model)
    prompt_text = question(prompt, piped)
    if not prompt_text:
        raise typer.BadParameter("there is nothing to ask", param_hint="PROMPT")

    async def ask(client: httpx.AsyncClient) -> None:
        harmless, put = sys.stdout.isatty(), partial(typer.echo, nl=False)
        options = {"seed": seed, "max_tokens": max_tokens, "temperature": temperature}
        await ask_once(
            client, prompt_text, put, model=model, system=system, harmless=harmless, **options
        )

    ask_service(url, edge_port, api_keys, ask)


@app.command()
def forget(url: Url = None, edge_port: EdgePort = 8000, api_keys: Keys = "") -> None:
    """Make the edge forget the answers that it keeps for this key, to draft from."""
    ask_service(url, edge_port, api_keys, empty_answer_cache)


def ask_service(
    url: str | None,
    edge_port: int,
    api_keys: str,
    ask: Callable[[httpx.AsyncClient], Awaitable[object]],
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
    prompt_text: str,
    put: Callable[[str], object],
    *,
    model: str | None = None,
    system: str = "",
    harmless: bool = False,
    **options: float | None,
) -> None:
    """Stream an answer to `put`, and end its last line. Raises ChatError.

    model: None: the first that is offered. harmless: True if terminal control characters are
    replaced; a file may have them. options: see `stream_answer`.
    """
    turns = [*([Turn("system", system)] if system else []), Turn("user", prompt_text)]
    used, text = model_to_ask(await models_of(client), model), ""
    async for chunk in stream_answer(client, used, turns, CHAT, **options):
        if chunk.text:
            text = visible(chunk.text) if harmless else chunk.text
            put(text)
    if not text.endswith("\n"):
        put("\n")
