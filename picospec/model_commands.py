"""`picospec models`: list, pull, add, remove, prune and verify."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from typer import Argument, Option

from gateway.hosting.settings import WrongSettings
from local_models.catalogue import Pair
from local_models.dequantise import Weights, dequantise
from local_models.errors import ModelError, UnknownModel
from local_models.progress import progress_bar
from local_models.references import Role
from local_models.store import open_store
from local_models.user_catalogue import UserCatalogue, user_file
from picospec.command_parts import Json, visible
from picospec.up import read_settings, sources_of

models_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)


Reference = Annotated[str, Argument(help="A name, owner/repo, owner/repo:Q4_K_M, or hf://...")]


@models_app.command("list")
def show(as_json: Json = False) -> None:
    """Show the models that a name can pull, and the models that are here.

    A model that is not here has the size of its download.
    """
    with _reported() as console:
        store = open_store(os.environ)
        entries, pairs = list(store.entries()), store.catalogue.pairs
        if as_json:
            listing = {"models": [asdict(entry) for entry in entries], "pairs": pairs}
            plain = msgspec.to_builtins(listing, enc_hook=str)
            return typer.echo(json.dumps(plain, indent=2))
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:  # no table: it would cut paths where the terminal ends
            size = f"{entry.bytes / 1e9:.2f}" if entry.bytes else "?"
            line = f"{entry.name:<{width}}  {size:>6} GB  {entry.path or 'not here'}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        for name, pair in pairs.items():
            console.print(f"pair {name}: {pair.draft} drafts for {pair.target}")


@models_app.command()
def pull(
    reference: Reference,
    role: Annotated[
        Role | None,
        Option("--as", help="Its use: it decides which file of a repository is best."),
    ] = None,
    config: Annotated[
        Path | None, Option(help=escape("TOML file whose [models] names the sources."))
    ] = None,
) -> None:
    """Download a model; as a target, with weights whose passes are exact."""
    with _reported() as console:
        settings = {} if config is None else read_settings(config)
        store = open_store({**os.environ, **sources_of(settings, os.environ)})
        with progress_bar(Console(stderr=True), reference) as progress:
            paths = store.pull(reference, progress, role)
        for path in paths:
            console.print(str(path), soft_wrap=True)


@models_app.command()
def add(
    name: str,
    reference: Annotated[str, Argument(help="owner/repo:Q4_K_M, hf://..., or a path.")],
    draft_for: Annotated[
        list[str], Option(help="A target of the catalogue that it drafts for; may be repeated.")
    ] = [],  # noqa: B006 - typer reads it, and nothing changes it
) -> None:
    """Give a model a name in your own catalogue, and pair it with targets."""
    with _reported() as console:
        store, own = open_store(os.environ), UserCatalogue(user_file(os.environ))
        if name in store.catalogue.names and name not in own.read().names:
            raise UnknownModel(f"{name} is a name of the built-in catalogue; choose another")
        targets = [store.catalogue.part(target, "target") for target in draft_for]
        model = store.describe(reference, "draft" if targets else "target")
        own.add(name, model, {f"{target}+{name}": Pair(name, target) for target in targets})
        console.print(
            f"{name} is {model.repository}/{model.file} in {own.file}", soft_wrap=True
        )


@models_app.command()
def remove(reference: Reference) -> None:
    """Delete a model's files from the store, and its entry if you have added it."""
    with _reported() as console:
        store, own = open_store(os.environ), UserCatalogue(user_file(os.environ))
        freed = store.remove(reference)
        if reference in own.read().names:
            own.remove(reference)
        console.print(f"{reference} is removed; {freed / 1e9:.2f} GB are free again")


@models_app.command()
def prune() -> None:
    """Delete unfinished downloads, and files that were only needed to make others of them."""
    with _reported() as console:
        console.print(f"{open_store(os.environ).prune() / 1e9:.2f} GB are free again")


@models_app.command()
def verify(reference: Reference) -> None:
    """Read a model's files again, and compare their sha256."""
    with _reported() as console:
        open_store(os.environ).verify(reference)
        console.print(f"{reference} is as it should be")


@models_app.command()
def dequantize(source: Path, target: Path, weights: Weights = "bfloat16") -> None:
    """Write a GGUF file as safetensors, for vLLM; needs the extra cloud-cpu."""
    with _reported() as console:
        dequantise(source, target, weights)
        console.print(str(target), soft_wrap=True)


@contextmanager
def _reported() -> Iterator[Console]:
    """Turn a ModelError, WrongSettings or OSError into one line on stderr and exit code 1."""
    try:
        yield Console()
    except (ModelError, WrongSettings, OSError) as error:
        console = Console(stderr=True)
        console.print("error:", style="red", end=" ")
        console.print(visible(str(error)), soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(1) from error
