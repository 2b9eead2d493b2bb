"""Shows an answer in the terminal while it comes, with a line of statistics below it.

The text has the colours of its tokens' origins, and the chain runs ahead of it, dimmed. The
model's reasoning before the answer is dimmed too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from picospec.answer_progress import AnswerProgress
from picospec.chat_client import (
    Chunk,
    ListedModel,
    Turn,
    distinct,
    model_to_ask,
    models_of,
    stream_answer,
)
from picospec.command_parts import visible

COLOURS: Final = {
    "draft": "green",
    "ahead": "cyan",
    "lookup": "blue",
    "verifier": "magenta",
    "grammar": "yellow",
}
"""A token has the colour of its origin. The target's own tokens have none."""

MAX_CHAIN_CHARACTERS: Final = 60
"""At most this much of the chain is shown, so that the last line does not jump."""


class AnswerView:
    """A text that grows: complete lines are printed; the last one stays above the statistics,
    and the unconfirmed chain follows it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._line = Text()
        self._chain = ""
        self._stats = ""
        self._thinks = False

    def add(self, chunk: Chunk, stats: str) -> None:
        """Show a chunk, and the statistics after it."""
        self._stats = stats
        event = chunk.speculation
        reasoning, text = visible(chunk.reasoning), visible(chunk.text)
        if event is not None and event.event == "chain":
            self._chain = "" if event.broken else visible(event.text)
        if reasoning:
            self._thinks = True
            self._advance(reasoning, Text(reasoning, style="dim"))
        if text:
            if self._thinks:  # the answer begins on a line of its own
                self._write(Text("\n"))
                self._thinks = False
            spans = event.spans if event is not None else ()
            self._advance(text, coloured(text, spans))
        self._draw()

    def end(self) -> None:
        """Remove from the screen what is not part of the answer."""
        self._chain = ""
        self._draw()

    def _advance(self, text: str, shown: Text) -> None:
        right = self._chain.startswith(text)
        self._chain = self._chain[len(text) :] if right else ""
        self._write(shown)

    def _write(self, text: Text) -> None:
        *complete, self._line = (self._line + text).split("\n", allow_blank=True)
        for line in complete:
            self._live.console.print(line, soft_wrap=True)

    def _draw(self) -> None:
        chain = self._chain.partition("\n")[0][:MAX_CHAIN_CHARACTERS]
        last = self._line + Text(chain, style="dim italic")
        self._live.update(Group(last, Text(self._stats, style="dim")), refresh=True)


def coloured(text: str, spans: Sequence[tuple[int, str]]) -> Text:
    """Return a text in the colours of its origins."""
    shown, at = Text(text), 0
    for count, origin in spans:
        if style := COLOURS.get(origin):
            shown.stylize(style, at, at + count)
        at += count
    return shown


async def answer(
    client: httpx.AsyncClient,
    turns: Sequence[Turn],
    console: Console,
    progress: AnswerProgress,
    *,
    model: str | None = None,
    seed: int | None = None,
) -> tuple[ListedModel, str]:
    """Stream one answer to the console; return its model and its text. Raises ChatError.

    progress: counts the answer. model: None takes the first that is ready. seed: None lets the
    service choose.
    """
    models, pieces = await models_of(client), list[str]()
    used = model_to_ask(models, model)
    name = used.id if len(distinct(models)) > 1 else ""
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        view = AnswerView(live)
        try:
            stream = stream_answer(client, used, turns, seed=seed)
            async with aclosing(stream):
                async for chunk in stream:
                    pieces.append(chunk.text)
                    progress.add(chunk)
                    view.add(chunk, " · ".join(filter(None, (name, str(progress)))))
        finally:
            view.end()
    return used, "".join(pieces)
