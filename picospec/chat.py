"""The command lines of `picospec chat`, `picospec run` and `picospec forget`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import randrange
from typing import Annotated, Final

import httpx
import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from typer import Argument, Option

from local_models.llama_cpp.prefix import common_prefix
from local_models.user_catalogue import user_file
from picospec.chat_client import (
    CHAT,
    DIRECT,
    SILENCE_S,
    AnswerProgress,
    ChatError,
    Chunk,
    ListedModel,
    Race,
    Turn,
    chosen,
    client_of,
    distinct,
    empty_answer_cache,
    model_to_ask,
    models_of,
    stream_answer,
)
from picospec.configuration import EdgePort, Keys, Url, edge_url, fail, first_key, visible

# Reads the user's messages: one line, or several between lines of three quotation marks.
#
# On a terminal, lines can be edited, and those of earlier chats come back with the arrow keys.

QUOTES: Final = '"""'
HISTORY_LINES: Final = 1000
_BOLD_CYAN: Final = "\001\x1b[1;36m\002{}\001\x1b[0m\002"
"""The first and last byte of each mark tell readline which characters take no room."""


def message_reader(history: Path) -> Callable[[], str]:
    """Return a function that reads a message from standard input, or raises EOFError."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        return lambda: read_message(input)
    try:
        import readline
    except ImportError:
        return lambda: read_message(input)
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)

    def read() -> str:
        message = read_message(lambda prompt: input(_BOLD_CYAN.format(prompt)))
        with suppress(OSError):  # a chat goes on without a history
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(0o600)
            readline.write_history_file(history)
        return message

    return read


def read_message(read_line: Callable[[str], str]) -> str:
    """Return the next message. read_line: takes a prompt, returns a line without its end."""
    line = read_line("> ")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read_line(". "))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")


# Shows an answer in the terminal while it comes, with a line of statistics below it.
#
# The text has the colours of its tokens' origins, and the chain runs ahead of it, dimmed. The
# model's reasoning before the answer is dimmed too.

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


# `picospec chat`: questions and answers until the input ends, with commands in between.

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
