"""A test stand on this machine: one verifier, and edges, the far ones over emulated links.

Every process is real: the services as they are shipped, on loopback, each with its own cores.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

from bench.link.relay_server import Link
from gateway.hosting.cores import Pins, share
from gateway.hosting.health import until_healthy
from gateway.hosting.processes import Child, Service, while_alive
from gateway.hosting.settings_sources import as_environment

HOST = "127.0.0.1"


def options(target: str, sessions: int) -> tuple[str, ...]:
    """Return what a verifier needs to be told to serve `sessions` answers at once, and one that
    has not left yet. vLLM: otherwise as configs/local-vllm.toml has it."""
    room = str(sessions + 1)
    if target == "llama":
        return "--llama.slots", room
    return (
        "--vllm.dtype", "bfloat16",
        "--vllm.max_model_len", "4096",
        "--vllm.max_num_seqs", room,
        "--vllm.kv_cache_memory_bytes", str(1 << 29),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """One edge of the stand."""

    drafter: str = "model"
    """`noise`: the one of bench.run.useless_drafter. Others: as in the edge's settings."""

    judge: str = "coupled"
    fill: str = "auto"
    lookup: bool = True
    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float | None = None
    linked: bool = False
    """Through a link even when it is not far: one whose conditions can be changed."""

    beside: bool = False
    """On the verifier's cores."""

    rounds: str = ""
    """A rule of bench.run.rounds, such as "sync:4", in place of the product's pacing."""

    @property
    def module(self) -> tuple[str, ...]:
        """The module that runs this edge, and the arguments that belong to it alone."""
        if self.rounds:
            return "bench.run.rounds", self.rounds
        return ("bench.run.useless_drafter" if self.drafter == "noise" else "edge_agent",)

    @property
    def settings(self) -> dict[str, object]:
        drafter = "none" if self.drafter == "noise" else self.drafter
        return {
            "drafter": drafter, "judge": self.judge, "fill": self.fill, "lookup": self.lookup
        }  # fmt: skip


def _pins() -> Pins:
    return share(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class StandPlan:
    target_model: str
    draft_model: str
    edges: Mapping[str, EdgePlan]
    target: str = "llama"
    verifier_arguments: Sequence[str] = ()
    verifier_python: str = sys.executable
    """vLLM lives in a virtual environment of its own."""

    verifier_cores: frozenset[int] = field(default_factory=lambda: _pins().verifier)
    edge_cores: frozenset[int] = field(default_factory=lambda: _pins().edge)
    """Half the machine each, unless told otherwise: neither end slows the other's passes."""

    healthy_within_s: float = 300.0
    environment: Mapping[str, str] = field(default_factory=dict)


class Stand:
    """Open it with `async with`; leaving stops every process. Raises ServiceError."""

    def __init__(self, plan: StandPlan) -> None:
        self.plan = plan
        self.verifier_url = f"http://{HOST}:{free_port()}"
        self.edge_urls: dict[str, str] = {}
        self.links: dict[str, Link] = {}
        self.pids: dict[str, int] = {}
        """Process groups: "verifier", and each edge by its name."""

        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def _start(self) -> None:
        relays = await self._open.enter_async_context(asyncio.TaskGroup())
        services = [self._verifier()]
        for name, edge in self.plan.edges.items():
            services.append(await self._edge(name, edge))
        children = [
            await self._open.enter_async_context(Child(service, self._hear, relays))
            for service in services
        ]
        self.pids = {child.service.name: child.pid for child in children}
        async with httpx.AsyncClient(trust_env=False) as client:
            healthy = until_healthy(services, client, within_s=self.plan.healthy_within_s)
            await while_alive(children, healthy)

    def _hear(self, name: str, line: str) -> None:
        """Print nothing: a service that does not start is quoted in the error."""

    def _verifier(self) -> Service:
        plan = self.plan
        command = (
            plan.verifier_python, "-m", "verifier", "--host", HOST,
            "--port", _port(self.verifier_url), "--target", plan.target,
            "--model", plan.target_model, *plan.verifier_arguments,
        )  # fmt: skip
        return Service(
            "verifier", command, self.verifier_url, plan.verifier_cores, plan.environment
        )

    async def _edge(self, name: str, edge: EdgePlan) -> Service:
        url = self.edge_urls[name] = f"http://{HOST}:{free_port()}"
        way = await self._way(name, edge)
        command = (
            sys.executable, "-m", *edge.module, "--host", HOST, "--port", _port(url),
            "--verifier-url", way,
            "--draft-model", self.plan.draft_model,
        )  # fmt: skip
        settings = as_environment("EDGE", edge.settings) | dict(self.plan.environment)
        cores = self.plan.verifier_cores if edge.beside else self.plan.edge_cores
        return Service(name, command, url, cores, settings)

    async def _way(self, name: str, edge: EdgePlan) -> str:
        """Return where this edge finds the verifier: through a link, if it is to be far."""
        if not (edge.linked or edge.rtt_ms or edge.jitter_ms or edge.rate_mbit):
            return self.verifier_url
        link = Link(
            (HOST, int(_port(self.verifier_url))),
            rtt_ms=edge.rtt_ms,
            jitter_ms=edge.jitter_ms,
            rate_mbit=edge.rate_mbit,
        )
        self.links[name] = await self._open.enter_async_context(link)
        return f"http://{HOST}:{link.port}"


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _port(url: str) -> str:
    return url.rsplit(":", 1)[1]
