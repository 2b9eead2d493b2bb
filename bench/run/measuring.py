"""One run: starts the arms, asks, shows how it goes, and saves each answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from picospec.bench.data.files import save
from picospec.bench.data.host import commit, this_host
from picospec.bench.data.prompts import Conversation
from picospec.bench.data.results import Answer, Results, Row, Settings, link_name, rows
from picospec.bench.data.tables import console as console_table
from picospec.bench.data.tables import grid
from picospec.bench.run.client import TooLong
from picospec.bench.run.live_arms import LiveArm, LiveArms
from picospec.bench.run.plan import Plan, Turn, answer, stints
from picospec.bench.run.services import ServicesPlan


@dataclass(frozen=True, slots=True)
class Run:
    plan: Plan
    services: ServicesPlan
    out: Path

    async def go(self, console: Console) -> Results:
        """Ask everything; the file is whole after every answer. Raises ServiceError,
        ModelError, AnswerError, or httpx.TransportError."""
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
        """Start one engine and what else its arms need, and ask them. A scenario ends where the
        model's context does: `keep` gets a line that says so, and "" for each further turn."""
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
    """Ask one question, after what this arm was asked and answered before."""
    question = replace(turn.question, before=conversation.before(turn.prompt))
    reply, costs = await arm.ask(question, cold=bool(turn.prompt.scenario))
    conversation.answered(turn.prompt, reply.text)
    return answer(turn, reply, costs)


def _listed(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "any"


def _table(found: Sequence[Row]) -> Table:
    """Return arms and temperatures down, families and links across."""
    cells = {}
    for r in found:
        heading = f"{r.family} {link_name(r.rtt_ms, r.rate_mbit)}"
        cells[(r.arm, f"{r.temperature:g}"), heading] = _cell(r)
    return console_table(*grid(("arm", "T"), cells))


def _cell(row: Row) -> str:
    """Return a cell; a star marks one in which some text differs from cloud's."""
    if row.arm == "cloud":
        return f"{row.tokens_per_s:.1f} tokens/s"
    return f"{row.speedup_vs_cloud:.2f}" + ("" if row.identical_to_cloud else " *")
