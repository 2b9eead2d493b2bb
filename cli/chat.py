"""`picospec chat`: a conversation in the terminal, with a line of statistics below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli.chat_client import ChatError, Turn, client_of, model_name, stream_answer
from cli.chat_stats import Reading, describe
from gateway.errors import first_error

READ_EVERY_S: Final = 0.5
"""Time between two readings of the edge's counters."""

SILENCE_S: Final = 120.0
"""Time without a byte after which the service is taken for dead."""


class AnswerView:
    """Text that grows: complete lines are printed, the last one stays above the statistics."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._line = ""
        self._stats = ""

    def write(self, text: str) -> None:
        *complete, self._line = (self._line + text).split("\n")
        for line in complete:
            self._live.console.print(Text(line), soft_wrap=True)
        self._live.update(Group(Text(self._line), Text(self._stats, style="dim")))

    def show_stats(self, stats: str) -> None:
        self._stats = stats
        self.write("")


async def answer(client: httpx.AsyncClient, turns: Sequence[Turn], console: Console) -> str:
    """Stream one answer to the console; return its text. Raises ChatError."""
    model, before, pieces = await model_name(client), await _read(client), list[str]()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        view = AnswerView(live)
        async with asyncio.TaskGroup() as tasks:
            updates = tasks.create_task(_update_stats(client, before, view))
            async with aclosing(stream_answer(client, model, turns)) as stream:
                async for piece in stream:
                    pieces.append(piece)
                    view.write(piece)
                    live.refresh()
            updates.cancel()
        view.show_stats(describe(before, await _read(client)))
        live.refresh()
    return "".join(pieces)


async def _update_stats(client: httpx.AsyncClient, before: Reading, view: AnswerView) -> None:
    while True:
        await asyncio.sleep(READ_EVERY_S)
        view.show_stats(describe(before, await _read(client)))


async def _read(client: httpx.AsyncClient) -> Reading:
    """Return the edge's counters, all 0 for a service without them."""
    try:
        response = await client.get("/metrics")
    except httpx.TransportError:
        return Reading(time.monotonic())
    return Reading.parse(response.text, time.monotonic())


def chat(url: str, key: str | None, console: Console, ask_user: Callable[[], str]) -> None:
    """Answer questions until the input ends.

    An answer that fails or is interrupted is left out of the conversation, with its question.
    """
    turns: list[Turn] = []
    while True:
        try:
            question = ask_user().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            continue
        asked = [*turns, Turn("user", question)]
        try:
            text = asyncio.run(_ask(url, key, asked, console))
        except KeyboardInterrupt:
            console.print("interrupted", style="yellow")
        except ChatError as error:
            console.print(str(error), style="red", markup=False)
        else:
            turns = [*asked, Turn("assistant", text)]


async def _ask(url: str, key: str | None, turns: Sequence[Turn], console: Console) -> str:
    try:
        async with client_of(url, key, SILENCE_S) as client:
            return await answer(client, turns, console)
    except ExceptionGroup as group:
        raise first_error(group) from None
