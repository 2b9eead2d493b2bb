"""`picospec bench run` reads a plan from its options and measures it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from picospec.bench import options
from picospec.bench.data import prompts as script
from picospec.bench.data.prompts import SHIPPED, Conversation, read
from picospec.bench.data.results import (
    Answer,
    Results,
    Row,
    Settings,
    commit,
    link_name,
    rows,
    save,
    this_host,
)
from picospec.bench.data.statistics import console as console_table
from picospec.bench.data.statistics import grid
from picospec.bench.link import Conditions
from picospec.bench.run.client import AnswerError, TooLong
from picospec.bench.run.live_arms import NAMES, LiveArm, LiveArms, parse
from picospec.bench.run.plan import Plan, Turn, answer, stints
from picospec.bench.run.services import CONTEXT_TOKENS, ServicesPlan, pins, verifier_arguments
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import ModelError


def edge_environment(context_tokens: int) -> dict[str, str]:
    """Return the settings of every edge: each serves one answer at a time, and many share the
    memory."""
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
    with options.checked():
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


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    services: ServicesPlan
    out: Path

    async def go(self, console: Console) -> Results:
        """Ask everything. The file is complete after every answer. Raises ServiceError,
        ModelError, AnswerError or httpx.TransportError."""
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        progress = Progress(*columns, console=console)
        found = self._nothing_yet()
        planned = stints(self.plan)
        task = progress.add_task("", total=sum(map(len, planned)))

        def show(what: str) -> None:
            progress.update(task, description=what)

        def keep(given: Answer | str) -> None:
            nonlocal found
            progress.advance(task)
            if isinstance(given, str):
                if given:
                    console.print(given, markup=False, soft_wrap=True)
                return
            answers = [*found.answers, given]
            found = msgspec.structs.replace(found, rows=rows(answers), answers=answers)
            save(found, self.out)
            live.update(Group(_table(found.rows), progress))

        with Live(Group(progress), console=console, refresh_per_second=2) as live:
            for asked in planned:
                await self._stint(asked, show, keep)
        return found

    async def _stint(
        self,
        turns: Sequence[Turn],
        show: Callable[[str], None],
        keep: Callable[[Answer | str], None],
    ) -> None:
        """Start one engine with the other services of its arms, and ask them. A scenario ends
        with the context: `keep` then gets a line on it, and "" for each further turn."""
        link, conversation, full = None, Conversation(), ""
        show(f"starting {turns[0].arm.engine or 'the services'}")
        own = {turn.arm.name: turn.arm for turn in turns}
        async with LiveArms(self.services, list(own.values())) as arms:
            for turn in turns:
                show(f"{turn.prompt.id} {turn.arm.name} at {turn.link.rtt_ms:g} ms")
                if turn.link != link:
                    await arms.become(link := turn.link)
                if full and turn.prompt.scenario == full:
                    keep("")
                    continue
                try:
                    keep(await _asked(turn, arms.by_name[turn.arm.name], conversation))
                except TooLong as error:
                    if not (full := turn.prompt.scenario):
                        raise
                    keep(f"{turn.arm.name}: {full} ends before {turn.prompt.id}: {error}")

    def _nothing_yet(self) -> Results:
        plan, services, first = self.plan, self.services, self.plan.links[0]
        link: dict[str, float | None] = {"jitter_ms": first.jitter_ms, "loss": first.loss}
        settings: Settings = {
            "arms": [arm.name for arm in plan.arms],
            "tokens": plan.tokens,
            "repeats": plan.repeats,
            "seed": plan.seed,
            "verifier_cores": _listed(services.verifier_cores),
            "edge_cores": _listed(services.edge_cores),
            "driver_cores": _listed(os.sched_getaffinity(0)),
        }
        return Results(this_host(), commit(), services.models, link, settings, [], [])


async def _asked(turn: Turn, arm: LiveArm, conversation: Conversation) -> Answer:
    """Ask one question, after this arm's earlier questions and answers."""
    question = replace(turn.question, before=conversation.before(turn.prompt))
    reply, costs = await arm.ask(question, cold=bool(turn.prompt.scenario))
    conversation.answered(turn.prompt, reply.text)
    return answer(turn, reply, costs)


def _listed(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "any"


def _table(found: Sequence[Row]) -> Table:
    """Return a table: arms and temperatures as lines, families and links as columns."""
    cells = {}
    for r in found:
        heading = f"{r.family} {link_name(r.rtt_ms, r.rate_mbit)}"
        cells[(r.arm, f"{r.temperature:g}"), heading] = _cell(r)
    return console_table(*grid(("arm", "T"), cells))


def _cell(row: Row) -> str:
    """Return a cell. A star marks a text that differs from cloud's."""
    if row.arm == "cloud":
        return f"{row.tokens_per_s:.1f} tokens/s"
    return f"{row.speedup_vs_cloud:.2f}" + ("" if row.identical_to_cloud else " *")
