"""`picospec bench run`: starts the arms, asks, shows how it goes, saves each answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

from bench.report.results import Answer, Results, Row, Settings, rows
from bench.run.host import commit, this_host
from bench.run.live_arms import Arena
from bench.run.plan import Plan, ask, repository, turns
from bench.run.services import StandPlan


@dataclass(slots=True)
class Run:
    """A run and what it has found so far."""

    plan: Plan
    stand: StandPlan
    out: Path
    answers: list[Answer] = field(default_factory=list)

    async def go(self, console: Console) -> Results:
        """Ask everything; the file is whole at any moment. Raises ServiceError, AnswerError."""
        host, made_of = this_host(), commit(repository())
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        planned = list(turns(self.plan))
        task = progress.add_task("starting", total=len(planned))
        found = Results(host, made_of, self._models(), self._link(), self._settings(), [], [])
        with Live(Group(progress), console=console, refresh_per_second=2) as live:
            async with Arena(self.stand, self.plan.arms) as arena:
                link = None
                for turn in planned:
                    said = f"{turn.prompt.id} {turn.arm.name} at {turn.link.rtt_ms:g} ms"
                    progress.update(task, description=said)
                    if turn.link != link:
                        await arena.become(link := turn.link)
                    self.answers.append(await ask(arena, turn))
                    found = self._saved(found)
                    live.update(Group(table(found.rows), progress))
                    progress.advance(task)
        return found

    def _saved(self, found: Results) -> Results:
        now = Results(
            found.host, found.commit, found.models, found.link, found.settings,
            rows(self.answers), self.answers,
        )  # fmt: skip
        now.save(self.out)
        return now

    def _models(self) -> dict[str, str]:
        return {
            "target": self.stand.target_model,
            "draft": self.stand.draft_model,
            "engine": self.stand.target,
            "engine_arguments": " ".join(self.stand.verifier_arguments),
        }

    def _link(self) -> dict[str, float | None]:
        first = self.plan.links[0]
        return {"jitter_ms": first.jitter_ms, "loss": first.loss}

    def _settings(self) -> Settings:
        return {
            "arms": [arm.name for arm in self.plan.arms],
            "tokens": self.plan.tokens,
            "repeats": self.plan.repeats,
            "seed": self.plan.seed,
            "verifier_cores": _listed(self.stand.verifier_cores),
            "edge_cores": _listed(self.stand.edge_cores),
            "driver_cores": _listed(os.sched_getaffinity(0)),
        }


def _listed(cores: frozenset[int] | set[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "any"


def table(found: Sequence[Row]) -> Table:
    """Return the speed-ups so far: an arm and temperature a line, a family and link a
    column; * marks another text than cloud's."""
    columns = list(dict.fromkeys((r.family, r.rtt_ms, r.rate_mbit) for r in found))
    shown = Table("arm", "T", *(_heading(*column) for column in columns))
    cells = {(r.arm, r.temperature, r.family, r.rtt_ms, r.rate_mbit): _cell(r) for r in found}
    for arm, heat in dict.fromkeys((r.arm, r.temperature) for r in found):
        line = (cells.get((arm, heat, *column), "") for column in columns)
        shown.add_row(arm, f"{heat:g}", *line)
    return shown


def _heading(family: str, rtt_ms: float, rate_mbit: float | None) -> str:
    return f"{family} {rtt_ms:g} ms" + ("" if rate_mbit is None else f" {rate_mbit:g} Mbit/s")


def _cell(row: Row) -> str:
    if row.arm == "cloud":
        return f"{row.tokens_per_s:.1f} tokens/s"
    return f"{row.speedup_vs_cloud:.2f}" + ("" if row.identical_to_cloud else " *")
