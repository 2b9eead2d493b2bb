"""`picospec bench speeds`: how fast both ends are, for `simulate --hosts FILE`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.calibrate.measurement import Measurement
from picospec.bench.calibrate.pass_timing import TimingError
from picospec.bench.data.files import save
from picospec.bench.data.prompts import read
from picospec.bench.run.services import ServicesPlan, verifier_arguments
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import ModelError


def speeds(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--json", help="Where the speeds go.")],
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    verifier_python: options.VerifierPython = sys.executable,
    families: options.Families = "code,maths,chat",
    tokens: Annotated[int, typer.Option(help="Of an answer that is timed.")] = 192,
) -> None:
    """Measure both ends as `run` starts them, half the machine each; 3 to 6 minutes."""
    plan = ServicesPlan(
        target_model, draft_model, {}, target,
        verifier_arguments(target, 1, context.args), verifier_python,
    )  # fmt: skip
    prompts = read(families=options.names(families), per_family=2)
    os.sched_setaffinity(0, plan.edge_cores)  # as in `run`
    console = Console()
    try:
        found = asyncio.run(Measurement(plan, prompts, tokens, console).run())
    except* (ServiceError, ModelError, TimingError, ApiError) as errors:
        options.fail(console, errors)
    save(found, out)
    console.print(str(out))
