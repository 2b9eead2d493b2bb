"""Checks that an edge generates the target's own text, on the same prompts and seed.

    python -m picospec.bench.identity --tokens 64 --edges model,late,noise --temperatures 0,1
    python -m picospec.bench.identity --target vllm --target-model DIRECTORY \
        --verifier-python PYTHON --sessions 12 --explain --vllm.dtype bfloat16

Each prompt goes to the verifier's plain engine and to every edge, with one seed. A difference
is a defect, and makes the exit status 1, unless --explain shows that it was a near-tie
(bench.identity.comparison).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from picospec.bench import options
from picospec.bench.data.prompts import SHIPPED, read
from picospec.bench.identity.comparison import (
    EDGES,
    Answer,
    Explain,
    ask,
    batched,
    compare,
    explainer,
    is_defect,
    tally,
)
from picospec.bench.run.services import Services, ServicesPlan, verifier_arguments
from picospec.models.store import open_store
from picospec.models.tokenizer_file import tokenizer_file

LIKELIEST = 20
"""A difference is explained by the log-probabilities of this many tokens at each position."""


def main(
    context: typer.Context,
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    verifier_python: options.VerifierPython = sys.executable,
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    sessions: Annotated[int, typer.Option(help="Answers at once.")] = 1,
    edges: Annotated[str, typer.Option(help=f"Of {', '.join(EDGES)}.")] = "model,late,noise",
    temperatures: options.Temperatures = "0,1",
    settings: Annotated[
        str, typer.Option(help='More fields of each request, as JSON: {"logit_bias": {}}.')
    ] = "{}",
    explain: Annotated[bool, typer.Option(help="Show how close a difference was.")] = False,
) -> None:
    """Compare edges' texts with the plain engine's. Unknown options go to the verifier."""
    likeliest = LIKELIEST if explain else None
    asking = partial(ask, tokens=tokens, likeliest=likeliest, settings=json.loads(settings))
    path = open_store(os.environ).find(target_model, "target").path
    vocabulary = tokenizer_file(path).open().vocabulary
    explain_difference: Explain = explainer(vocabulary) if explain else lambda plain, edge: None
    asked = read(prompts, per_family=per_family)
    batches = batched(options.numbers(temperatures), asked, sessions)
    slots = {"PICOSPEC_EDGE__SLOTS": str(sessions), "PICOSPEC_EDGE__CONTEXT_TOKENS": "2048"}
    plan = ServicesPlan(
        target_model, draft_model, {name: EDGES[name] for name in edges.split(",")}, target,
        verifier_arguments(target, sessions, context.args), verifier_python, environment=slots,
    )  # fmt: skip

    answers: list[Answer] = []

    async def run() -> None:
        async with Services(plan) as services:
            urls = services.verifier_url, services.edge_urls
            compared = compare(*urls, batches, asking, explain_difference)
            with Progress(console=Console(stderr=True)) as progress:
                total = sum(len(some) for _, some in batches) * (1 + len(plan.edges))
                task = progress.add_task("asking", total=total)
                async for answer in compared:
                    answers.append(answer)
                    progress.advance(task)

    asyncio.run(run())
    Console().print("\n".join(tally(answers)), markup=False, soft_wrap=True)
    sys.exit(any(map(is_defect, answers)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
