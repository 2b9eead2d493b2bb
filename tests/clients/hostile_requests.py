"""Shows that hostile schemas and tool lists leave a service answering others; run by hand.

    python -m tests.clients.hostile_requests --count 1000

It starts a verifier with SmolLM2. Each hostile request must get a 400 that names a field of it,
or an answer; any other outcome is a defect, and makes the exit status 1. Meanwhile another
client asks plain questions, and each of these must be answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from picospec.bench.run.services import Services, ServicesPlan
from tests.clients.hostile_bodies import hostile

MODEL = "smollm2"
AT_ONCE = 4
WITHIN_S = 180.0
ALONE = 20
PLAIN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Name a colour."}],
    "max_tokens": 4,
    "temperature": 0,
}


def memory_mb(group: int) -> float:
    """Return the memory of the processes of a group: what is in RAM of each, added."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pages += int(fields[21]) if int(fields[2]) == group else 0
    return pages * 4096 / 1e6


def outcome(body: dict[str, Any], answer: httpx.Response) -> str:
    """Return what became of a hostile request: "answered", "400", or how it is a defect."""
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        return "answered" if choice["finish_reason"] else "an answer without an end"
    error = answer.json()["error"]
    if answer.status_code != 400:
        return f"status {answer.status_code}"
    if error["code"] == "invalid_json":  # such as one that is nested too deeply
        return "400"
    named = str(error["param"]).split(".")[0]
    return "400" if named in body else f"400 names {error['param']}"


class Plain:
    """The other client: it asks one plain question after the other."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.waits_s: list[float] = []
        self.unanswered = 0

    async def ask(self) -> None:
        begun = perf_counter()
        try:
            status = (await self._client.post("/v1/chat/completions", json=PLAIN)).status_code
        except httpx.TransportError:
            status = 0
        self.waits_s.append(perf_counter() - begun)
        self.unanswered += status != 200

    async def ask_on(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(0.05)

    def __str__(self) -> str:
        waits = sorted(self.waits_s)
        middle, late = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
        return (
            f"{len(waits)} asked, {self.unanswered} not answered; wait: median"
            f" {middle:.2f} s, 99th percentile {late:.2f} s, longest {waits[-1]:.2f} s"
        )


async def attack(
    client: httpx.AsyncClient, seeds: Iterator[int], tally: Counter[tuple[str, str]]
) -> None:
    for seed in seeds:
        family, body = hostile(seed)
        content = json.dumps(PLAIN | body)
        headers = {"content-type": "application/json"}
        try:
            answer = await client.post("/v1/chat/completions", content=content, headers=headers)
            found = outcome(PLAIN | body, answer)
        except httpx.TransportError as error:
            found = f"no answer: {type(error).__name__}"
        tally[family, found] += 1
        if found not in ("400", "answered"):
            Console(soft_wrap=True).print(seed, family, found, content[:300], markup=False)


def main(
    count: Annotated[int, typer.Option(help="Hostile requests.")] = 1000,
    first: Annotated[int, typer.Option(help="Seed of the first.")] = 0,
) -> None:
    tally, console = Counter[tuple[str, str]](), Console(soft_wrap=True)

    async def run() -> bool:
        plan = ServicesPlan(MODEL, MODEL, {}, verifier_arguments=("--llama.slots", "8"))
        async with (
            Services(plan) as services,
            httpx.AsyncClient(
                base_url=services.verifier_url, timeout=WITHIN_S, trust_env=False
            ) as client,
        ):
            group = services.pids["verifier"]
            alone, beside = Plain(client), Plain(client)
            for _ in range(ALONE):
                await alone.ask()
            memory = [memory_mb(group)]
            asking = asyncio.create_task(beside.ask_on())
            for part in range(4):
                seeds = iter(range(first + part * count // 4, first + (part + 1) * count // 4))
                await asyncio.gather(*(attack(client, seeds, tally) for _ in range(AT_ONCE)))
                memory.append(memory_mb(group))
            asking.cancel()
            await asyncio.wait([asking])
            after = Plain(client)
            for _ in range(ALONE):
                await after.ask()
        console.print(f"alone: {alone}\nbeside: {beside}\nafter: {after}")
        console.print(
            f"memory, MB, before and after each quarter: {[round(m) for m in memory]}"
        )
        return not (alone.unanswered or beside.unanswered or after.unanswered)

    others_answered = asyncio.run(run())
    outcomes = sorted({found for _, found in tally})
    table = Table("family", *outcomes)
    for family in dict.fromkeys(family for family, _ in tally):
        table.add_row(family, *(str(tally[family, found]) for found in outcomes))
    for (_, found), number in list(tally.items()):
        tally["all", found] += number
    table.add_row("all", *(str(tally["all", found]) for found in outcomes))
    console.print(table)
    sys.exit(not others_answered or not {"400", "answered"}.issuperset(outcomes))


if __name__ == "__main__":
    typer.run(main)
