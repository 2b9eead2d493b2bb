"""`python -m tests.hostile.verifier`: an edge with a hostile verifier and a correct one.

All are processes, with SmolLM2 at the edge and at the correct verifier. Three
clients read one answer after another, which begin while the hostile verifier is away. Then it
comes, and each answer of it is another attack. Four other clients meet these. At the end the
growth of the edge's memory is printed, and what both kinds of clients got.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx

from picospec.edge_agent.link import direct
from tests.edge_agent.fake_verifier import FACTS, Receive, Send
from tests.end_to_end.fleet import Answer, Fleet, ask
from tests.hostile import hostile_verifier
from tests.hostile.hostile_verifier import HOW, ROUTES, SESSIONS, WRONG_FACTS, hostile

MAX_GROWTH_BYTES: Final = 64 << 20
READERS: Final = 3
SLOTS: Final = 4
"""Clients of the correct verifier, and its sessions: with three of four it counts as busy, so
that new answers begin at the hostile one."""

ATTACKED: Final = 4
TOKENS: Final = 60
PATIENCE_S: Final = 3.0
"""How long a client that meets an attack waits."""


# --- the hostile verifier's process: its arguments are a port, this module, and a folder

_away = [True]
_attacks = Counter[str]()
_turns = {
    **{route: cycle([f"{route}+{how}" for how in HOW]) for route in ROUTES},
    "facts": cycle([*(f"facts+{how}" for how in HOW), *(f"fact+{f}" for f in WRONG_FACTS)]),
    "open": cycle(
        [*(f"open+{h}" for h in HOW), *(f"session+{h}" for h in ("alive", *SESSIONS))]
    ),
}
_correct = cycle([True, True, False])
"""Whether it says that it is ready, and its facts, so that edges come to it."""


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer as the correct verifier, or make the next attack of the route."""
    if scope["type"] != "http":
        return
    path, method = scope["path"], scope["method"]
    found = (r for r, (m, ending) in ROUTES.items() if m == method and ending in path)
    if (route := next(found, "")) in ("facts", "ready", "tokenizer") and next(_correct):
        route = ""
    attack = next(_turns[route]) if route else ""
    if path in ("/away", "/there"):
        _away[0] = path == "/away"
        attack, path = "", "/attacks"
    if path == "/attacks":
        await hostile_verifier.answer(send, 200, {}, [json.dumps(_attacks).encode()])
    elif _away[0] and path == "/ready":
        await hostile_verifier.answer(send, 503, {}, [])
    elif not attack and (copy := Path(sys.argv[3]) / path.replace("/", "_")).exists():
        await hostile_verifier.answer(send, 200, {}, [copy.read_bytes()])
    else:
        _attacks.update([attack] if attack else [])
        await hostile_verifier.app({**scope, "path": f"/{attack}{path}"}, receive, send)


def copy(url: str, folder: Path) -> None:
    """Keep what the correct verifier says of itself, so that both seem to be alike."""
    FACTS.update(httpx.get(f"{url}/v1/model-facts").json())
    for path in ("/v1/model-facts", "/v1/tokenizer"):
        (folder / path.replace("/", "_")).write_bytes(httpx.get(url + path).content)
    (folder / "_ready").write_bytes(b'{"load": 0}')


# --- the clients


@dataclass
class Seen:
    edge: str
    process: int
    peak_bytes: int = 0
    read: list[Answer] = field(default_factory=list)
    got: Counter[str] = field(default_factory=Counter)
    ended: threading.Event = field(default_factory=threading.Event)
    attacked: threading.Event = field(default_factory=threading.Event)

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * 4096

    def watch(self) -> None:
        while not self.ended.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, self.resident_bytes())

    def meet(self) -> None:
        """Ask again and again for what only the hostile verifier has room for."""
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "seed": 4}
        asks = cycle(["/v1/chat/completions", direct.PATH, "/status"])
        while not self.ended.is_set():
            if not self.attacked.wait(0.1):
                continue
            path = next(asks)
            try:
                answer = httpx.request(
                    "GET" if path == "/status" else "POST",
                    self.edge + path,
                    json=None if path == "/status" else body,
                    timeout=PATIENCE_S,
                )
                self.got[str(answer.status_code)] += 1
            except httpx.TransportError as error:
                self.got[type(error).__name__] += 1


def until_alone(edge: str) -> None:
    """Return once the hostile verifier counts as away, and no session runs at the other one."""
    deadline = time.monotonic() + 60
    while True:
        correct, enemy = httpx.get(f"{edge}/health", timeout=10).json()["verifiers"]
        if correct["ready"] and not correct["load"] and not enemy["ready"]:
            return
        assert time.monotonic() < deadline, (correct, enemy)
        time.sleep(0.1)


def read(seen: Seen, enemy: str, threads: ThreadPoolExecutor) -> None:
    """Have all readers read one answer, which begins while the hostile verifier is away. It
    comes then, but in the first one."""
    seen.attacked.clear()
    httpx.post(f"{enemy}/away")
    until_alone(seen.edge)
    begun = threading.Barrier(READERS + 1)
    greedy = {"temperature": 0}
    answers = [
        threads.submit(ask, seen.edge, greedy, begun.wait, TOKENS) for _ in range(READERS)
    ]
    begun.wait(120)
    if seen.peak_bytes:
        httpx.post(f"{enemy}/there")
        seen.attacked.set()
    seen.read += [answer.result() for answer in answers]


def run(seconds: float) -> bool:
    fleet = Fleet()
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1 + ATTACKED + READERS) as threads:
        try:
            full = {"PICOSPEC_VERIFIER__SESSIONS__MAX_SESSIONS": str(SLOTS)}
            one_thread = ("--llama.threads", "1")
            url = fleet.start("picospec.verifier", "--model", "smollm2", *one_thread, **full)
            fleet.until_ready(url)
            copy(url, Path(folder))
            with hostile(__spec__.name, folder) as enemy:
                edge = fleet.edge(url, enemy)
                fleet.until_ready(edge)
                seen = Seen(edge, fleet.processes[edge].pid)
                return _run(seen, enemy, seconds, threads)
        finally:
            fleet.end()


def _run(seen: Seen, enemy: str, seconds: float, threads: ThreadPoolExecutor) -> bool:
    read(seen, enemy, threads)
    before, calm_s = seen.resident_bytes(), max(answer.gap_s for answer in seen.read)
    seen.read.clear()
    seen.peak_bytes = before
    for work in [seen.watch, *[seen.meet] * ATTACKED]:
        threads.submit(work)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            read(seen, enemy, threads)
        attacks = httpx.post(f"{enemy}/away").json()
    finally:
        seen.ended.set()
    growth = seen.peak_bytes - before
    served = [
        answer for answer in seen.read if answer.text == seen.read[0].text and not answer.error
    ]
    print(f"{sum(attacks.values())} attacks of {len(attacks)} kinds: {sorted(attacks)}")  # noqa: T201
    print(f"edge: {before >> 20} MiB before, at most {growth >> 20} MiB more")  # noqa: T201
    gap_s = max(answer.gap_s for answer in seen.read)
    print(  # noqa: T201
        f"readers: {len(served)} of {len(seen.read)} answers complete and alike; "
        f"the longest gap {gap_s:.2f} s, and {calm_s:.2f} s before the attacks"
    )
    print(f"the others: {dict(seen.got)}")  # noqa: T201
    return growth <= MAX_GROWTH_BYTES and len(served) == len(seen.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    sys.exit(not run(parser.parse_args().seconds))
