"""Several of the bench's commands share these options, and the parsers of their values."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn

import typer
from rich.console import Console

from gateway.errors import first_error
from local_models.errors import ModelError

VERIFIER_OPTIONS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
"""A command with these settings passes options that it does not know to the verifier."""

PAIR: Final = "qwen2.5-coder"

Engine = Annotated[Literal["llama", "vllm"], typer.Option("--target")]
TargetModel = Annotated[str, typer.Option(help="Pair, or path.")]
DraftModel = Annotated[str, typer.Option(help="Pair, or path.")]
VerifierPython = Annotated[str, typer.Option(help="The Python that has vLLM.")]
Families = Annotated[str, typer.Option(help="E.g. code,maths; all, if not given.")]
Prompts = Annotated[Path, typer.Option(help="JSON lines of id, family, prompt.")]
PerFamily = Annotated[int | None, typer.Option(help="Prompts of each family.")]
Temperatures = Annotated[str, typer.Option(help="E.g. 0,1.")]
Rtt = Annotated[str, typer.Option(help="Round trips in ms, e.g. 10,50.")]
Counts = Annotated[str, typer.Option(help="Numbers of clients.")]
Out = Annotated[Path, typer.Option("--json", help="Where the results go.")]
Tokens = Annotated[int, typer.Option(help="The most tokens of an answer.")]
Traces = Annotated[Path, typer.Option(help="Folder that `bench record` wrote.")]
Hosts = Annotated[str, typer.Option(help="cpu; or 72/24: ms a pass, ms a draft step.")]


def names(text: str) -> list[str]:
    """Parse "code,maths"; an empty text has no names."""
    return [name for name in text.split(",") if name]


def numbers(text: str) -> list[float]:
    """Parse "10,50". Raises ValueError."""
    return [float(part) for part in text.split(",")]


def counts(text: str) -> list[int]:
    """Parse "1,16". Raises ValueError."""
    return [int(part) for part in text.split(",")]


def known(text: str, some: Sequence[str]) -> list[str]:
    """Parse names, of which each is one of some. Raises ValueError."""
    if not text or set(names(text)) - set(some):
        raise ValueError(f"{text!r}: choose of {', '.join(some)}")
    return names(text)


@contextmanager
def checked() -> Iterator[None]:
    """End the command like a wrong option if its input cannot be used."""
    try:
        yield
    except (ModelError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def fail(console: Console, errors: BaseExceptionGroup[BaseException]) -> NoReturn:
    """End the command with the first error of a group."""
    first = first_error(errors)
    text = f"{type(first).__name__}: {first}"
    console.print(text, style="red", markup=False, soft_wrap=True)
    sys.exit(1)
