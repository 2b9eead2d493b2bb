"""`picospec measure` asks an edge for the same answers by turns, with drafts and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from picospec.chat import ask_service
from picospec.chat_client import (
    CHAT,
    DIRECT,
    ListedModel,
    Turn,
    empty_answer_cache,
    first_model,
    stream_answer,
)
from picospec.command_parts import EdgePort, Keys, Url

PROMPTS: Final[Mapping[str, str]] = {
    "code": "Write a Python class for a stack, with push, pop, peek and a docstring for each.",
    "maths": "A train goes 180 km in 2 hours, then 120 km in 1. What is its mean speed?",
    "chat": "Tell me about a lighthouse keeper who is waiting for a ship.",
}


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The gain for one kind of text: of each turn, the seconds with drafts and without."""

    kind: str
    drafted_s: tuple[float, ...]
    alone_s: tuple[float, ...]
    is_same_text: bool

    @property
    def ratio(self) -> float:
        """Return the median of how many times as fast the answers are with drafts."""
        return median(a / d for a, d in zip(self.alone_s, self.drafted_s, strict=True))


async def measure(
    client: httpx.AsyncClient,
    tokens: int,
    turns: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Comparison]:
    """Return the gain for each prompt of PROMPTS: `turns` pairs of answers of `tokens` tokens
    at temperature 0. Which of a pair is first alternates. The edge forgets the answers that it
    keeps before each, so that none is guessed from its own repetition. Raises ChatError."""
    model = await first_model(client)
    return [await _compared(client, model, kind, tokens, turns, clock) for kind in PROMPTS]


async def _compared(
    client: httpx.AsyncClient,
    model: ListedModel,
    kind: str,
    tokens: int,
    turns: int,
    clock: Callable[[], float],
) -> Comparison:
    async def answer(path: str, most: int = tokens) -> TimedAnswer:
        await empty_answer_cache(client)
        question = [Turn("user", PROMPTS[kind])]
        options = {"temperature": 0.0, "seed": 1, "max_tokens": most}
        began_s = clock()
        chunks = [
            each.text async for each in stream_answer(client, model, question, path, **options)
        ]
        return TimedAnswer("".join(chunks), clock() - began_s)

    answers: dict[str, list[TimedAnswer]] = {CHAT: [], DIRECT: []}
    for path in answers:
        await answer(path, 1)  # reads the prompt, whose cache is kept
    for turn in range(turns):
        for path in (CHAT, DIRECT) if turn % 2 else (DIRECT, CHAT):
            answers[path].append(await answer(path))
    texts = {each.text for timed in answers.values() for each in timed}
    seconds = {path: tuple(each.seconds for each in timed) for path, timed in answers.items()}
    return Comparison(kind, seconds[CHAT], seconds[DIRECT], len(texts) == 1)


def report(gains: list[Comparison], console: Console) -> None:
    """Print a row for each kind of text."""
    table = Table("text", "with drafts", "without", "times as fast", "same text")
    for each in gains:
        drafted_s, alone_s = median(each.drafted_s), median(each.alone_s)
        same = "yes" if each.is_same_text else "no"
        table.add_row(
            each.kind, f"{drafted_s:.2f} s", f"{alone_s:.2f} s", f"{each.ratio:.2f}", same
        )
    console.print(table)


app = typer.Typer()


@app.command("measure")
def command(
    tokens: Annotated[int, Option(min=1, help="Tokens of an answer.")] = 128,
    turns: Annotated[int, Option(min=1, help="Pairs of answers for each text.")] = 3,
    url: Url = None,
    edge_port: EdgePort = 8000,
    api_keys: Keys = "",
) -> None:
    """Measure what drafting gains here: the same answers by turns, with drafts and without.

    The edge forgets the answers that it keeps for this key.
    """
    console = Console()

    async def ask(client: httpx.AsyncClient) -> None:
        with console.status("asking by turns, with drafts and without"):
            gains = await measure(client, tokens, turns)
        report(gains, console)

    ask_service(url, edge_port, api_keys, ask)
