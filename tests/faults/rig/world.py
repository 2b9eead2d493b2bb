"""Two verifiers with SmolLM2, an edge, a link to each verifier, and a clock for all of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx

from bench.link import Conditions
from local_models.store import open_store
from tests.edge_agent.processes import ROOT
from tests.faults.rig.asking import Answer, Watch, ask
from tests.faults.rig.services import Service, Verifier
from tests.local_models.chats import TEMPLATES, Json

FOLDER: Final = ROOT / "build" / "faults"
SETTLED_WITHIN_S: Final = 120.0
"""A session ends when its stream is known to be gone; then nothing may be left."""


REFUSES_S: Final = 2.0
"""An edge that has not taken a connection for so long takes no more."""


@dataclass(frozen=True, slots=True)
class Plan:
    verifiers: int = 2
    slots: int = 6
    """Answers that a verifier generates at once."""

    verifier_options: Sequence[str] = ()
    edge_descriptors: int | None = None
    """The edge's limit, if not that of the tests."""

    folder: Path = FOLDER / "campaign"


class World:
    """Open it with `async with`; leaving ends all processes."""

    def __init__(self, plan: Plan = Plan()) -> None:
        folder = plan.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.plan = plan
        self._folder = folder
        self.http = _client()
        self.verifiers = [
            Verifier(f"verifier{i}", folder, *_verifier_options(plan))
            for i in range(plan.verifiers)
        ]
        self.edge: Service
        self._stack = AsyncExitStack()
        self._strangers: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        open_store(os.environ).pull("smollm2", lambda what, done, total: None)
        self._stack.push_async_callback(self.rest)
        for verifier in self.verifiers:
            await self._stack.enter_async_context(verifier.link)
        self.edge = self._edge()
        clock = _clock(self._folder)
        for service in self.services:
            service.environment |= clock
            self._stack.callback(service.end)
        try:
            await self.heal()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _edge(self) -> Service:
        urls = [word for v in self.verifiers for word in ("--verifier-url", v.link.url)]
        given = ("--draft-model", "smollm2", "--slots", "4", *urls)
        edge = Service("edge", "edge_agent", self._folder, *given)
        edge.environment["PICOSPEC_EDGE__FAILOVER_DEADLINE_S"] = "45"
        # Else nothing would be asked twice.
        edge.environment["PICOSPEC_EDGE__ANSWER_CACHE_TOKENS"] = "0"
        edge.descriptors = self.plan.edge_descriptors
        return edge

    @property
    def services(self) -> list[Service]:
        return [*self.verifiers, self.edge]

    # --- faults end

    async def heal(self) -> None:
        """Have everything run without faults, and wait until it does."""
        self.set_clock(0.0)
        while self._strangers:
            self._strangers.pop().close()
        for verifier in self.verifiers:
            verifier.link.heal()
        for service in self.services:
            service.order.unlink(missing_ok=True)
            if service.alive:
                service.signal_all(signal.SIGCONT)
                service.fill_disk(False)
                service.take_descriptors(False)
        for service in self.services:
            if not await service.serves(self.http):
                await self._start_again(service)
        for service in self.services:
            await service.ready(self.http)

    async def _start_again(self, service: Service) -> None:
        """Start a service that has ended, or is about to."""
        if service.alive:
            await service.kill()
        service.start()

    def set_clock(self, ahead_s: float) -> None:
        """Set the clock of the day ahead by so much, for all services."""
        with (self._folder / "clock").open("r+b") as file:  # it is mapped: never cut it short
            file.write(struct.pack("d", ahead_s))

    async def connect_strangers(self, count: int) -> None:
        """Have strangers hold connections to the edge, as many as it takes up to `count`."""
        address, loop = ("127.0.0.1", self.edge.port), asyncio.get_running_loop()
        with suppress(TimeoutError):
            for _ in range(count):
                self._strangers.append(stranger := socket.socket())
                stranger.setblocking(False)
                async with asyncio.timeout(REFUSES_S):
                    await loop.sock_connect(stranger, address)

    def degrade(self, conditions: Conditions) -> None:
        """Change all links."""
        for verifier in self.verifiers:
            verifier.link.change(conditions)

    # --- what is known

    async def ask(self, body: Json, watch: Watch = lambda answer: None) -> Answer:
        """Ask the edge for an answer."""
        return await ask(self.http, self.edge.url, body, watch)

    async def used(self) -> Verifier:
        """Return the verifier that has most of the edge's sessions."""
        sessions = await self.edge.gauge(self.http, "picospec:edge_verifier_sessions")
        label = max(sessions, key=lambda each: sessions[each]).split('"')[1]
        health = (await self.http.get(f"{self.edge.url}/health")).json()
        labels = [each["verifier"] for each in health["verifiers"]]
        return self.verifiers[labels.index(label)]

    async def rest(self) -> None:
        """Close the client's connections, and let the services notice."""
        await self.http.aclose()
        self.http = _client()
        await asyncio.sleep(1.0)

    async def left(self) -> list[str]:
        """Return what is left of answers: sessions at either end, and their KV."""
        found = []
        for verifier in self.verifiers:
            for name in ("picospec:sessions_open", "picospec:kv_cache_usage_perc"):
                value = sum((await verifier.gauge(self.http, name)).values())
                found += [f"{verifier.name}: {name} {value:g}"] * bool(value)
        mine = await self.edge.gauge(self.http, "picospec:edge_verifier_sessions")
        return found + [f"the edge has {n:g} sessions{at}" for at, n in mine.items() if n]

    async def settled(self) -> None:
        """Wait until nothing is left of the answers that there were."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while left := await self.left():
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.1)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=90)


def _verifier_options(plan: Plan) -> tuple[str, ...]:
    return (
        "--model", "smollm2", "--llama.threads", "1", "--llama.slots", str(plan.slots),
        "--llama.context-tokens", "2048", "--chat-template", str(TEMPLATES / "qwen2.5.jinja"),
        *plan.verifier_options,
    )  # fmt: skip


def _clock(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose clock can be set."""
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    file = folder / "clock"
    file.write_bytes(struct.pack("d", 0.0))
    return {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(file)}
