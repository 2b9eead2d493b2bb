"""A conversation is questions and answers until the input ends, with commands in between."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec
from rich.console import Console

from local_models.llama_cpp.prefix import common_prefix
from picospec.answer_progress import AnswerProgress, Race
from picospec.answer_view import answer
from picospec.chat_client import (
    DIRECT,
    ChatError,
    ListedModel,
    Turn,
    chosen,
    distinct,
    models_of,
    stream_answer,
)

HELP: Final = """/model NAME    which one answers from now on; without a name, the list
/system TEXT   what the model is told first; without a text, nothing
/seed NUMBER   of all answers from now on; without a number, another one each time
/save FILE     this conversation, as JSON if the name ends so, else as text
/proof         ask the large model alone for the last answer, and compare
Several lines: begin and end them with \"\"\""""

MAX_SEED: Final = 2**31


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, which took `seconds`."""

    model: ListedModel
    messages: Sequence[Turn]
    seed: int
    text: str
    seconds: float


class Conversation:
    """One conversation. draw_seed: returns a seed below MAX_SEED for each answer. model: the
    name of the one that answers; None: the first that is ready.

    An answer that fails or is interrupted is left out, and so is its question.
    """

    def __init__(
        self,
        connect: Callable[[], httpx.AsyncClient],
        console: Console,
        draw_seed: Callable[[], int],
        model: str | None = None,
    ) -> None:
        self._connect, self._console, self._draw_seed = connect, console, draw_seed
        self._model = model
        self._system, self._seed = "", ""
        self._turns: list[Turn] = []
        self._last: Exchange | None = None
        self._race = Race()

    def run(self, ask_user: Callable[[], str]) -> None:
        """Answer until the input ends, then print how fast that was."""
        while True:
            try:
                line = ask_user().strip()
            except (EOFError, KeyboardInterrupt):
                break
            if line:
                self.handle(line)
        if str(self._race):
            self._console.print(f"\n{self._race}", style="bold", highlight=False)

    def handle(self, line: str) -> None:
        """Carry out a command, or answer a question."""
        command = re.match(r"/([a-z]+)(?:\s+|$)", line)
        try:
            if command:
                self._run_command(command[1], line[command.end() :])
            else:
                asyncio.run(self._answer(line))
        except KeyboardInterrupt:
            self._console.print("interrupted", style="yellow")
        except (ChatError, OSError, ValueError) as error:
            self._console.print(str(error), style="red", markup=False)

    def _run_command(self, command: str, text: str) -> None:
        match command:
            case "model":
                asyncio.run(self._choose(text.strip() or None))
            case "system":
                self._system = text
            case "seed":
                if text and not text.isdecimal():
                    raise ValueError(f"a seed is a whole number, not {text}")
                self._seed = text
            case "save":
                save(Path(text).expanduser(), self._messages())
            case "proof":
                asyncio.run(self._prove())
            case _:
                self._console.print(HELP, markup=False, highlight=False)

    async def _answer(self, question: str) -> None:
        turns = [*self._turns, Turn("user", question)]
        seed = int(self._seed) if self._seed else self._draw_seed()
        progress, began_s = AnswerProgress(time.monotonic), time.monotonic()
        messages = self._messages(turns)
        async with self._connect() as client:
            model, text = await answer(
                client, messages, self._console, progress, model=self._model, seed=seed
            )
        self._turns = [*turns, Turn("assistant", text)]
        self._last = Exchange(model, messages, seed, text, time.monotonic() - began_s)
        self._race += progress.race

    async def _choose(self, name: str | None) -> None:
        """Have another model answer, or list them."""
        async with self._connect() as client:
            models = await models_of(client)
        if name is not None:
            self._model = chosen(models, name).id
            return
        current = self._model or chosen(models, None).id
        for each in distinct(models):
            mark, state = "*" if each.id == current else " ", " (away)" * each.is_away
            self._console.print(f"{mark} {each.id}{state}", markup=False, highlight=False)

    async def _prove(self) -> None:
        if self._last is None:
            raise ValueError("there is no answer to prove yet")
        async with self._connect() as client:
            with self._console.status("asking the large model alone"):
                verdict = await prove(client, self._last)
        self._console.print(verdict, style="bold", highlight=False, markup=False)

    def _messages(self, turns: Sequence[Turn] | None = None) -> list[Turn]:
        system = [Turn("system", self._system)] if self._system else []
        return [*system, *(self._turns if turns is None else turns)]


def save(path: Path, messages: Sequence[Turn]) -> None:
    """Write messages into a file that does not exist yet. Raises OSError."""
    if path.suffix == ".json":
        text = json.dumps(msgspec.to_builtins(messages), indent=2, ensure_ascii=False)
    else:
        text = "\n\n".join(f"## {turn.role}\n\n{turn.content}" for turn in messages)
    with path.open("x", encoding="utf-8") as file:
        file.write(f"{text}\n")


async def prove(client: httpx.AsyncClient, exchange: Exchange) -> str:
    """Ask the large model alone the same question with the same seed, and return a sentence
    that compares the answers. Raises ChatError, also if there is no edge."""
    began_s = time.monotonic()
    turns, seed = exchange.messages, exchange.seed
    stream = stream_answer(client, exchange.model, turns, DIRECT, seed=seed)
    text = "".join([chunk.text async for chunk in stream])
    seconds = time.monotonic() - began_s
    if text != exchange.text:
        same = common_prefix(text, exchange.text)
        return (
            f"The texts differ after {same} characters. A near-tie of the large model can do"
            " that; the page's “Prove it” shows both tokens' probabilities."
        )
    times = f"{exchange.seconds:.1f} s, and the large model alone {seconds:.1f} s"
    return f"The same text, character for character. It took {times}."
