"""`picospec bench run`: reads what to measure and measures it."""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import product
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.data.prompts import SHIPPED, read
from picospec.bench.data.scenarios import script
from picospec.bench.link.path import Conditions
from picospec.bench.run.arms import NAMES, parse
from picospec.bench.run.client import AnswerError
from picospec.bench.run.measuring import Run
from picospec.bench.run.plan import Plan
from picospec.bench.run.services import CONTEXT_TOKENS, ServicesPlan, pins, verifier_arguments
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import ModelError


def edge_environment(context_tokens: int) -> dict[str, str]:
    """Return settings that every edge has: each serves one answer at a time, and many share
    the memory."""
    context = str(context_tokens)
    return {"PICOSPEC_EDGE__SLOTS": "1", "PICOSPEC_EDGE__CONTEXT_TOKENS": context}


def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--json", help="Where the results go.")],
    arms: Annotated[
        str, typer.Option(help=f"Of {', '.join(NAMES)}.")
    ] = "cloud,picospec,sync:4,paper:4",
    rtt: Annotated[str, typer.Option(help="Round trips in ms, e.g. 10,50.")] = "10",
    rate: Annotated[str, typer.Option(help="Mbit/s each way, e.g. 100,0.064.")] = "",
    jitter: Annotated[float, typer.Option(help="The RTT varies by so much, ms.")] = 0.0,
    loss: Annotated[float, typer.Option(help="Probability of a lost segment.")] = 0.0,
    families: options.Families = "",
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    repeats: Annotated[int, typer.Option()] = 1,
    questions_per_engine: Annotated[
        int, typer.Option(min=1, help="Before another engine's turn, if arms have several.")
    ] = 3,
    temperatures: options.Temperatures = "0",
    seed: Annotated[int, typer.Option(help="Of the first repeat.")] = 7,
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    cloud_draft_model: Annotated[str, typer.Option(help="Of cloud-draft: safetensors.")] = "",
    verifier_python: options.VerifierPython = sys.executable,
    pin: Annotated[str, typer.Option(help='"VERIFIER:EDGE", "none"; halves.')] = "",
) -> None:
    """Measure. Options it does not know go to the verifier, as --vllm.dtype float32; those of
    vLLM also to its own server, where an arm has one."""
    console = Console()
    try:
        links = product(options.numbers(rate) if rate else [None], options.numbers(rtt))
        plan = Plan(
            parse(arms),
            read(prompts, options.names(families), per_family),
            [Conditions(rtt_ms, jitter, rate_mbit, loss) for rate_mbit, rtt_ms in links],
            options.numbers(temperatures), tokens, repeats, seed,
            questions_per_engine,
        )  # fmt: skip
        for arm in plan.arms:
            if arm.rival:
                arm.rival.check(target, verifier_python, cloud_draft_model, plan.temperatures)
        cores = pins(pin)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    long = any(prompt.scenario for prompt in plan.prompts)
    room = script.CONTEXT_TOKENS if long else CONTEXT_TOKENS
    services = ServicesPlan(
        target_model, draft_model, {}, target,
        verifier_arguments(target, 1, context.args, room), verifier_python,
        cores.verifier, cores.edge, edge_environment(room), cloud_draft_model=cloud_draft_model,
    )  # fmt: skip
    if cores.edge:
        os.sched_setaffinity(0, cores.edge)  # links and client are on the user's side
    try:
        asyncio.run(Run(plan, services, out).go(console))
    except* (ServiceError, ModelError, AnswerError, httpx.HTTPError) as errors:
        options.fail(console, errors)
