"""`picospec chat`: a conversation in the terminal, with a line that shows how it is going."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli.chat_client import ChatError, Turn, ask, model_name
from cli.chat_stats import Reading, describe

READ_EVERY_S = 0.5
SILENCE_S = 120.0
"""A service that says nothing for so long is taken for dead."""


class Page:
    """Text that grows: whole lines go above the live part, the last one stays in it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._line = ""
        self._figures = ""

    def write(self, text: str) -> None:
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._live.console.print(Text(line), soft_wrap=True)
        self._show()

    def note(self, figures: str) -> None:
        self._figures = figures
        self._show()

    def _show(self) -> None:
        self._live.update(Group(Text(self._line), Text(self._figures, style="dim")))


async def answer(client: httpx.AsyncClient, turns: Sequence[Turn], console: Console) -> str:
    """Stream one answer to the console; return its text. Raises ChatError."""
    model = await model_name(client)
    said: list[str] = []
    before = await _read(client)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        page = Page(live)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(client, before, page))
            async with aclosing(ask(client, model, turns)) as pieces:
                async for piece in pieces:
                    said.append(piece)
                    page.write(piece)
                    live.refresh()
            watching.cancel()
        page.note(describe(before, await _read(client)))
        live.refresh()
    return "".join(said)


async def _watch(client: httpx.AsyncClient, before: Reading, page: Page) -> None:
    while True:
        await asyncio.sleep(READ_EVERY_S)
        page.note(describe(before, await _read(client)))


async def _read(client: httpx.AsyncClient) -> Reading:
    """Return the edge's counters; all 0 where it does not tell them."""
    try:
        response = await client.get("/metrics")
    except httpx.TransportError:
        return Reading(time.monotonic())
    return Reading.parse(response.text, time.monotonic())


def chat(url: str, api_key: str | None, console: Console, ask_user: Callable[[], str]) -> None:
    """Talk until the input ends. An answer that fails, or is interrupted, is forgotten."""
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
            text = asyncio.run(_one_answer(url, api_key, asked, console))
        except KeyboardInterrupt:
            console.print("interrupted", style="yellow")
        except ChatError as error:
            console.print(str(error), style="red", markup=False)
        else:
            turns = [*asked, Turn("assistant", text)]


async def _one_answer(
    url: str, api_key: str | None, turns: Sequence[Turn], console: Console
) -> str:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limit = httpx.Timeout(SILENCE_S, connect=5.0)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=limit, trust_env=False
    ) as client:
        try:
            return await answer(client, turns, console)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
