"""Logs every message of the simulator, and compares two such logs.

    python -m bench.simulator.event_log --out FILE [--traces DIR]
    python -m bench.simulator.event_log --compare OLD NEW

A change that keeps every decision keeps every line, so two commits are compared by their logs.
A log has a *cell* for each arm, operating point, round trip and source, in which a client asks
twice, and cells in which four clients share a verifier. In further cells 16 and 64 clients ask
once, alone and beside requests without a session. A cell is `{"cell": name}` and lists:

    ["sent", seconds, link, kind, fields], ["arrived", seconds, link, kind]   links by first use
    ["answer", n, tokens, ttft_s, seconds, drafted, bytes_up, bytes_down]
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product, zip_longest
from pathlib import Path
from typing import Final

import msgspec
import typer

from bench.link import Conditions
from bench.link import Path as LinkPath
from bench.simulator.clock import Deliver, Line
from bench.simulator.comparison import candidates
from bench.simulator.edge import Answer
from bench.simulator.hosts import TWICE_AT, World, gpu, hosts_of
from bench.simulator.source import Source, synthetic, traced
from bench.simulator.world import Arm, Simulation
from bench.traces import Trace
from speculation.messages import Message

ARMS: Final = ("cloud", "picospec", "picospec-nolookup", "sync:4")
HOSTS: Final = {name: hosts_of(name) for name in ("cpu", "72/7")} | {
    f"{target}/{draft}": gpu(target / 1e3, draft / 1e3, TWICE_AT)
    for target, draft in ((72, 24), (146, 43), (10, 5))
}
HOSTS["dear rows"] = gpu(0.072, 0.007, twice_at=2)
"""If a row costs a pass, draft tokens go unused that would be accepted. Only here does the edge
pause because of that."""
RTTS_MS: Final = (10.0, 50.0, 100.0, 200.0)
ACCEPTANCES: Final = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 1.0)
TOKENS, PROMPT_TOKENS, CLIENTS, ANSWERS = 160, 40, 4, 3
CROWDS: Final = ((16, 0), (16, 16), (64, 0), (64, 16))
"""So many clients share a verifier with so many requests that have no session."""
FLOAT: Final = re.compile(r"\d+\.\d+(e-?\d+)?")


class LoggedLine(Line):
    """Logs its messages when they are sent and when they arrive."""

    def __init__(self, of: LoggedSimulation, path: LinkPath, deliver: Deliver) -> None:
        super().__init__(of.clock, path, self._arrived)
        self._of = of
        self._read = deliver
        self._number: int | None = None

    def send(self, message: Message) -> None:
        if self._number is None:
            self._number = next(self._of.unused)
        fields = msgspec.to_builtins(message)
        fields.pop("version", None)  # the protocol's version
        self._write("sent", message, fields)
        super().send(message)

    def _arrived(self, message: Message) -> None:
        self._write("arrived", message)
        self._read(message)

    def _write(self, what: str, message: Message, *fields: object) -> None:
        now_s = self._of.clock.now_s
        self._of.write(what, now_s, self._number, type(message).__name__, *fields)


class LoggedSimulation(Simulation):
    """Lists every message in `lines`, and then every answer."""

    def __init__(self, there: World, arm: Arm) -> None:
        super().__init__(there, arm)
        self.lines: list[str] = []
        self.unused = count()

    def line(self, path: LinkPath, deliver: Deliver) -> Line:
        return LoggedLine(self, path, deliver)

    def run(self, clients: Sequence[Sequence[Source]]) -> list[Answer]:
        answers = super().run(clients)
        for n, answer in enumerate(answers):
            cost = answer.drafted, answer.bytes_up, answer.bytes_down
            self.write("answer", n, answer.tokens, answer.ttft_s, answer.seconds, *cost)
        return answers

    def write(self, *values: object) -> None:
        self.lines.append(json.dumps(values, sort_keys=True) + "\n")


def events(there: World, arm: str, clients: Sequence[Sequence[Source]]) -> str:
    """Return the lines of one cell."""
    simulation = LoggedSimulation(there, candidates(arm)[0])
    simulation.run(clients)
    return "".join(simulation.lines)


def cells(sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """Yield the name and the lines of every cell."""
    every, step = list(sources.values()), max(1, len(sources) // CLIENTS)
    crowd = [every[i * step :][:ANSWERS] for i in range(CLIENTS)]
    asked = {name: [[source, source]] for name, source in sources.items()} | {"crowd": crowd}
    every_cell = product(ARMS, HOSTS.items(), RTTS_MS, asked.items())
    for arm, (point, hosts), rtt_ms, (name, clients) in every_cell:
        there = World(hosts, Conditions(rtt_ms))
        yield f"{arm}, {point}, {rtt_ms:g} ms, {name}", events(there, arm, clients)
    for point, rtt_ms, (many, others) in product(
        ("72/24", "10/5", "dear rows"), (10.0, 50.0), CROWDS
    ):
        there = World(HOSTS[point], Conditions(rtt_ms), rows=1024, others=others)
        clients = [[every[i % len(every)]] for i in range(many)]
        name = f"picospec, {point}, {rtt_ms:g} ms, {many} clients, {others} others"
        yield name, events(there, "picospec", clients)


def read(path: Path) -> dict[str, str]:
    """Return the lines of every cell of a log."""
    with gzip.open(path, "rt") as file:
        parts = file.read().split('{"cell": "')[1:]
    return {name: lines for name, _, lines in (part.partition('"}\n') for part in parts)}


def report(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Yield the first messages in which cells differ by more than rounding, then the totals."""
    counts = Counter({"only in one log": len(old.keys() ^ new.keys())})
    for name in sorted(old.keys() & new.keys()):
        if old[name] == new[name]:
            counts["identical"] += 1
        elif not (pair := next(_differing(old[name], new[name]), None)):
            counts["identical but for rounding and what answers cost"] += 1
        else:
            counts["different"] += 1
            yield "\n    ".join((name, *pair))
    yield ", ".join(f"{number} {how}" for how, number in counts.items())


def _differing(*cells: str) -> Iterator[tuple[str, ...]]:
    """Yield the messages in which two cells differ, with numbers rounded to nine digits."""
    rounded = (FLOAT.sub(lambda n: f"{float(n[0]):.9g}", cell) for cell in cells)
    messages = ([m for m in r.splitlines() if not m.startswith('["answer"')] for r in rounded)
    return (pair for pair in zip_longest(*messages, fillvalue="-") if pair[0] != pair[1])


def main(
    out: Path | None = None, traces: Path | None = None,
    compare: tuple[Path, Path] | None = None,
) -> None:  # fmt: skip
    """Write a log, over the traces of a folder or else made-up answers; or compare two."""
    if compare:
        typer.echo("\n".join(report(*map(read, compare))))
    if out:
        files = sorted(traces.glob("*.npz")) if traces else ()
        replayed = {file.stem: traced(Trace.load(file)) for file in files}
        keys = product(ACCEPTANCES, (0, 1))
        made_up = {f"{a} {seed}": synthetic(a, TOKENS, seed, PROMPT_TOKENS) for a, seed in keys}
        with gzip.open(out, "wt", compresslevel=3) as log:
            for name, lines in cells(replayed or made_up):
                log.write(json.dumps({"cell": name}) + "\n" + lines)


if __name__ == "__main__":
    typer.run(main)
