"""`picospec bench record`: traces of real prompts, for the simulator."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from picospec.bench import options
from picospec.bench.data.files import load
from picospec.bench.data.prompts import SHIPPED, read
from picospec.bench.data.results import Results
from picospec.bench.data.scenarios import script
from picospec.bench.traces.record import CONTEXT_TOKENS, Subject, answered, traces
from picospec.edge_agent.draft_model.loading import find
from picospec.models.errors import ModelError
from picospec.models.store import open_store


def record(
    out: Annotated[Path, typer.Option(help="Folder for the traces.")],
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    families: options.Families = "",
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    temperatures: options.Temperatures = "0",
    seed: Annotated[int, typer.Option()] = 7,
    answers: Annotated[
        Path | None, typer.Option(help="A file of `run`: the draft model reads its answers.")
    ] = None,
) -> None:
    """Record what both models generate, for `simulate` and `agree`."""
    store = open_store(os.environ)
    pairs = store.catalogue.pairs
    try:
        target = pairs[target_model].target if target_model in pairs else target_model
        files = find(target, store), find(draft_model, store)
        chosen = read(prompts, options.names(families), per_family)
        if answers:
            subjects = answered(load(answers, Results), {p.id: p for p in chosen})
        else:
            asked = product(options.numbers(temperatures), chosen)
            subjects = [Subject(prompt, prompt.family, heat, seed) for heat, prompt in asked]
        long = any(prompt.scenario for prompt in chosen)
        out.mkdir(parents=True, exist_ok=True)
        room = script.CONTEXT_TOKENS if long else CONTEXT_TOKENS
        recorded = traces(*files, subjects, tokens, room)
        for trace in track(recorded, "recording", total=len(subjects)):
            Console().print(str(trace.save(out)))
    except (ModelError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
