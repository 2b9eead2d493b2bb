"""`picospec models`: list, pull and verify."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from models.dequantise import Weights, dequantise
from models.errors import ModelError
from models.store import open_store

models_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)


@models_app.command("list")
def show() -> None:
    """Show the models that can be pulled, and those that are here."""
    with _reported() as console:
        store = open_store(os.environ)
        table = Table("name", "GB", "file")
        for entry in store.entries():
            table.add_row(entry.name, f"{entry.bytes / 1e9:.2f}", str(entry.path or "-"))
        console.print(table)
        for name, pair in store.catalogue.pairs.items():
            console.print(f"pair {name}: {pair.draft} drafts for {pair.target}")


@models_app.command()
def pull(name: str) -> None:
    """Bring a model, a variant or a pair here."""
    with _reported() as console:
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
        text = TextColumn("{task.description}")
        with Progress(text, *columns, console=console, transient=True) as bars:
            task = bars.add_task("starting", total=None)

            def show(what: str, done: int, total: int) -> None:
                bars.update(task, description=what, completed=done, total=total)

            paths = open_store(os.environ).pull(name, show)
        for path in paths:
            console.print(str(path), soft_wrap=True)


@models_app.command()
def verify(name: str) -> None:
    """Read the files of a name again, and compare their sha256."""
    with _reported() as console:
        open_store(os.environ).verify(name)
        console.print(f"{name} is as it should be")


@models_app.command()
def dequantize(source: Path, target: Path, weights: Weights = "bfloat16") -> None:
    """Write a GGUF file as safetensors, for vLLM; needs the extra cloud-cpu."""
    with _reported() as console:
        dequantise(source, target, weights)
        console.print(str(target), soft_wrap=True)


@contextmanager
def _reported() -> Iterator[Console]:
    """Turn a ModelError into one line on stderr and exit code 1."""
    try:
        yield Console()
    except ModelError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
