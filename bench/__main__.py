"""`picospec bench`: measure every arm in one run, report it, record traces, replay them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import track

from bench.calibrate import command as measure
from bench.link.path import Conditions
from bench.report.join import joined
from bench.report.markdown import markdown
from bench.report.results import load
from bench.run.arms import NAMES, parse
from bench.run.client import AnswerError
from bench.run.command import Run
from bench.run.plan import Plan
from bench.run.prompts import SHIPPED, Prompt, Selection, read
from bench.run.services import StandPlan, options
from bench.simulator import agree
from bench.simulator import command as simulate
from bench.traces.command import Recording, traces
from bench.traces.from_answers import Replies
from edge_agent.draft_model.loading import find
from gateway.hosting.cores import Pins, parse_pins, share
from gateway.hosting.processes import ServiceError
from models.errors import ModelError
from models.store import open_store

app = typer.Typer(
    help="Measure what PicoSpec gains, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

VERIFIER_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
EDGE_ENVIRONMENT = {"PICOSPEC_EDGE__SLOTS": "1", "PICOSPEC_EDGE__CONTEXT_TOKENS": "4096"}
"""One job at a time; each of many edges keeps little memory."""

Families = Annotated[str, typer.Option(help="E.g. code,maths; all, if not given.")]
Prompts = Annotated[Path, typer.Option(help="JSON lines of id, family, prompt.")]
PerFamily = Annotated[int | None, typer.Option(help="Prompts of each family.")]
Temperatures = Annotated[str, typer.Option(help="E.g. 0,1.")]


@app.command(context_settings=VERIFIER_OPTIONS)
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
    families: Families = "",
    prompts: Prompts = SHIPPED,
    per_family: PerFamily = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 64,
    repeats: Annotated[int, typer.Option()] = 1,
    temperatures: Temperatures = "0",
    seed: Annotated[int, typer.Option(help="Of the first repeat.")] = 7,
    target: Annotated[str, typer.Option(help="llama or vllm.")] = "llama",
    target_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    draft_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    verifier_python: Annotated[str, typer.Option(help="Has vLLM.")] = sys.executable,
    pin: Annotated[str, typer.Option(help='"VERIFIER:EDGE", "none"; halves.')] = "",
) -> None:
    """Measure. Options it does not know go to the verifier, as --vllm.dtype float32."""
    console = Console()
    try:
        plan = Plan(
            parse(arms),
            _prompts(prompts, families, per_family),
            [Conditions(ms, jitter, mbit, loss) for mbit, ms in _links(rate, rtt)],
            _numbers(temperatures),
            tokens,
            repeats,
            seed,
        )
        pins = _pins(pin)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    stand = StandPlan(
        target_model,
        draft_model,
        {},
        target=target,
        verifier_arguments=(*options(target, sessions=1), *context.args),
        verifier_python=verifier_python,
        verifier_cores=pins.verifier,
        edge_cores=pins.edge,
        environment=EDGE_ENVIRONMENT,
    )
    if pins.edge:
        os.sched_setaffinity(0, pins.edge)  # the links and the client are on the user's side
    try:
        asyncio.run(Run(plan, stand, out).go(console))
    except* (ServiceError, ModelError, AnswerError, httpx.HTTPError) as errors:
        console.print(_first(errors), style="red", markup=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    plots: Annotated[bool, typer.Option(help="Draw them: needs matplotlib.")] = True,
) -> None:
    """Write OUT.md, and plots as PNG, next to the results."""
    try:
        found = load(results)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if not found.answers:
        raise typer.BadParameter(f"{results} holds no answers")
    drawn = []
    if plots:
        try:
            from bench.report.plots import draw
        except ImportError:
            sys.exit("plots need matplotlib: pip install 'picospec[bench]', or --no-plots")
        drawn = draw(found, results.parent, results.stem)
    page = results.with_suffix(".md")
    page.write_text(markdown(found, drawn))
    Console().print(*map(str, (page, *drawn)), sep="\n")


@app.command()
def join(
    runs: Annotated[list[Path], typer.Argument(help="What `run` wrote, some times.")],
    out: Annotated[Path, typer.Option("--json", help="Where the whole goes.")],
) -> None:
    """Put runs of the same models on one machine together: each is a repeat."""
    try:
        joined([load(path) for path in runs]).save(out)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="Folder for the traces.")],
    target_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    draft_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    families: Families = "",
    prompts: Prompts = SHIPPED,
    per_family: PerFamily = None,
    tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 64,
    temperatures: Temperatures = "0",
    seed: Annotated[int, typer.Option()] = 7,
    answers: Annotated[
        Path | None, typer.Option(help="A file of `run`: the draft model reads its answers.")
    ] = None,
) -> None:
    """Record what both models say, for `simulate` and `agree`."""
    store = open_store(os.environ)
    pairs = store.catalogue.pairs
    try:
        target = pairs[target_model].target if target_model in pairs else target_model
        files = find(target, store), find(draft_model, store)
        chosen = _prompts(prompts, families, per_family)
        if answers:
            replies = Replies(load(answers), {each.id: each for each in chosen}, *files)
            made, total = replies.traces(out), len(replies.wanted)
        else:
            recording = Recording(*files, chosen, _numbers(temperatures), tokens, seed)
            made, total = traces(recording, out), len(chosen) * len(recording.temperatures)
        for path in track(made, "recording", total=total):
            Console().print(str(path))
    except (ModelError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


app.command("simulate")(simulate.main)
app.command("agree")(agree.main)
app.command("speeds", context_settings=VERIFIER_OPTIONS)(measure.main)


def _prompts(path: Path, families: str, per_family: int | None) -> list[Prompt]:
    wanted = tuple(filter(None, families.split(",")))
    found = read(path, Selection(wanted, per_family))
    if missing := set(wanted) - {prompt.family for prompt in found}:
        raise ValueError(f"{path} has no prompts of {', '.join(sorted(missing))}")
    return found


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _links(rate: str, rtt: str) -> list[tuple[float | None, float]]:
    rates: Sequence[float | None] = _numbers(rate) if rate else [None]
    return list(product(rates, _numbers(rtt)))


def _pins(text: str) -> Pins:
    if sys.platform != "linux":
        return Pins()
    available = os.sched_getaffinity(0)
    return parse_pins(text, available) if text else share(available)


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    app(prog_name="picospec bench")
