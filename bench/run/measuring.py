"""One run: starts the arms, asks, shows how it goes, and saves each answer."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bench.data.files import save
from bench.data.host import commit, this_host
from bench.data.results import Results, Row, Settings, link_name, rows
from bench.data.tables import console as console_table
from bench.data.tables import grid
from bench.run.live_arms import LiveArms
from bench.run.plan import Plan, answer, turns
from bench.run.services import ServicesPlan


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    services: ServicesPlan
    out: Path

    async def go(self, console: Console) -> Results:
        """Ask everything; the file is whole after every answer.

        Raises ServiceError, ModelError, AnswerError, or httpx.TransportError.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        progress = Progress(*columns, TimeRemainingColumn(), console=console)
        found, link = self._nothing_yet(), None
        planned = list(turns(self.plan))
        task = progress.add_task("starting", total=len(planned))
        with Live(Group(progress), console=console, refresh_per_second=2) as live:
            async with LiveArms(self.services, self.plan.arms) as arms:
                for turn in progress.track(planned, task_id=task):
                    what = f"{turn.prompt.id} {turn.arm.name} at {turn.link.rtt_ms:g} ms"
                    progress.update(task, description=what)
                    if turn.link != link:
                        await arms.become(link := turn.link)
                    asked = await arms.by_name[turn.arm.name].ask(turn.question)
                    answers = [*found.answers, answer(turn, *asked)]
                    found = msgspec.structs.replace(found, rows=rows(answers), answers=answers)
                    save(found, self.out)
                    live.update(Group(_table(found.rows), progress))
        return found

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


def _listed(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "any"


def _table(found: Sequence[Row]) -> Table:
    """Return arms and temperatures down, families and links across."""
    cells = {
        (
            (r.arm, f"{r.temperature:g}"),
            f"{r.family} {link_name(r.rtt_ms, r.rate_mbit)}",
        ): _cell(r)
        for r in found
    }
    return console_table(*grid(("arm", "T"), cells))


def _cell(row: Row) -> str:
    """Return a cell; a star marks one in which some text differs from cloud's."""
    if row.arm == "cloud":
        return f"{row.tokens_per_s:.1f} tokens/s"
    return f"{row.speedup_vs_cloud:.2f}" + ("" if row.identical_to_cloud else " *")
