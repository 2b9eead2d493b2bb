"""A measurement runs one verifier, or a rival in its place, and edges, some of them behind
emulated links.

Every process is real: the services run as shipped, on loopback, each on its own cores.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Self

import httpx

from bench.link import Conditions, EmulatedLink
from bench.run.rivals import Rival
from gateway.hosting.cores import Pins, cores_of, parse_pins, share
from gateway.hosting.processes import Child, OnLine, Service, while_alive
from gateway.hosting.readiness import until_ready
from gateway.hosting.settings import as_environment
from gateway.system import usable_cpus
from picospec.link import HOST

LINKED = Conditions()
"""A link has these conditions before a turn sets others."""

PORTS = range(10_000, 32_000)
"""These ports are below those that kernels assign: Linux from 32,768, others from 49,152."""

CONTEXT_TOKENS = 4096
"""A short question and its answer have at most this many tokens together."""

VLLMS_PORT: Final = "--vllm.port"
"""A verifier with this argument serves vLLM's own API, too."""

READY_WITHIN_S = 600.0
"""All services must be ready within this many seconds."""


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """An EdgePlan is one edge, with its differences from the product's defaults."""

    draft_model: str = ""
    """The edge has this one; empty: that of the plan."""

    judge: str = "coupled"
    fill: str = "auto"
    lookup: bool = True
    ngram_drafts: bool = True
    answer_cache_tokens: int = 0
    link: Conditions | None = None
    """The edge reaches the verifier by an emulated link, whose conditions can be changed; None
    means that there is no link."""

    colocated: bool = False
    """True if the edge runs on the verifier's cores."""

    rounds: str = ""
    """bench.run.rounds runs this in place of the product, such as "sync:4" or "useless"."""

    @property
    def settings(self) -> dict[str, object]:
        names = ("judge", "fill", "lookup", "ngram_drafts", "answer_cache_tokens")
        return {name: getattr(self, name) for name in names}


FORGETFUL: Final = {"PICOSPEC_VERIFIER__SPECULATION__KEEP_ANSWERS": "false"}
"""A verifier with this environment drafts from no earlier answers: the arms of a bench ask the
same questions, so an arm would draft from another one's answers."""


def pins(text: str = "") -> Pins:
    """Return the cores that `text` names; by default each end gets half of them."""
    if sys.platform != "linux":
        return Pins()
    available = usable_cpus()
    return parse_pins(text, available) if text else share(cores_of(available))


@dataclass(frozen=True, slots=True)
class ServicesPlan:
    target_model: str
    draft_model: str
    edges: Mapping[str, EdgePlan]
    target: str = "llama"
    verifier_arguments: Sequence[str] = ()
    verifier_python: str = sys.executable
    """The verifier runs with this Python: vLLM has a virtual environment of its own."""

    verifier_cores: frozenset[int] = field(default_factory=lambda: pins().verifier)
    edge_cores: frozenset[int] = field(default_factory=lambda: pins().edge)
    """By default each end has half of the machine, so that neither slows the other's passes."""

    environment: Mapping[str, str] = field(default_factory=dict)

    edge_module: str = "edge_agent"
    verifier_module: str = "verifier"
    """Python runs these modules as each edge, and as the verifier."""

    rival: Rival | None = None
    """This rival, if any, is started in place of the verifier."""

    cloud_draft_model: str = ""
    """A rival with a draft model has this one, in a form that vLLM reads."""

    @property
    def models(self) -> dict[str, str]:
        """Return the entry about the models in a file of results."""
        return {
            "target": self.target_model, "draft": self.draft_model, "engine": self.target,
            "engine_arguments": " ".join(self.verifier_arguments),
        }  # fmt: skip


def verifier_arguments(
    target: str, sessions: int, more: Sequence[str] = (), context_tokens: int = CONTEXT_TOKENS
) -> tuple[str, ...]:
    """Return the arguments of a verifier that serves `sessions` answers at once, and one that
    has not ended yet; for vLLM the others equal configs/local-vllm.toml. `more` wins."""
    slots, context = str(sessions + 1), str(context_tokens)
    if target == "llama":
        return "--llama.slots", slots, "--llama.context_tokens", context, *more
    kv_bytes = (1 << 29) * (1 + context_tokens // (4 * CONTEXT_TOKENS))
    return (
        "--vllm.dtype", "bfloat16", "--vllm.max_model_len", context,
        "--vllm.max_num_seqs", slots, "--vllm.kv_cache_memory_bytes", str(kv_bytes), *more,
    )  # fmt: skip


class Started(AsyncExitStack):
    """Starts several parts on `async with`, and stops them together on leaving it."""

    @abstractmethod
    async def _start(self) -> None:
        """Start the parts, and enter each as a context."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self


@asynccontextmanager
async def linked(
    url: str, conditions: Conditions = LINKED
) -> AsyncGenerator[tuple[str, EmulatedLink]]:
    """Yield a URL that reaches a service through a link, and the link."""
    async with EmulatedLink((HOST, port(url)), conditions) as link:
        yield f"http://{HOST}:{link.port}", link


class Services(Started):
    """Runs the processes of a plan. Entering it raises ServiceError. on_line: gets what they
    print."""

    def __init__(self, plan: ServicesPlan, on_line: OnLine = lambda name, line: None) -> None:
        super().__init__()
        self.plan = plan
        self._on_line = on_line
        self.verifier_url = f"http://{HOST}:{free_port()}"
        self.edge_urls: dict[str, str] = {}
        self.links: dict[str, EmulatedLink] = {}
        self.pids: dict[str, int] = {}
        """The "verifier" and each edge, by name, have these process groups."""

    async def _start(self) -> None:
        relays = await self.enter_async_context(asyncio.TaskGroup())
        services = [self._verifier()]
        for name, edge in self.plan.edges.items():
            services.append(await self._edge(name, edge))
        children = [
            await self.enter_async_context(Child(service, self._on_line, relays))
            for service in services
        ]
        pids = (child.pid for child in children)
        self.pids = dict(zip(("verifier", *self.plan.edges), pids, strict=True))
        async with httpx.AsyncClient(trust_env=False) as client:
            ready = until_ready(services, client, within_s=READY_WITHIN_S)
            await while_alive(children, ready)

    @property
    def plain_url(self) -> str:
        """Return the address of vLLM's own API: a verifier may have it beside its own."""
        beside = dict(pairwise(self.plan.verifier_arguments)).get(VLLMS_PORT)
        own = None if self.plan.rival else beside
        return f"http://{HOST}:{own}" if own else self.verifier_url

    def _verifier(self) -> Service:
        plan, url = self.plan, self.verifier_url
        cores, settings = plan.verifier_cores, plan.environment
        where = ("--host", HOST, "--port", str(port(url)), *plan.verifier_arguments)
        python, model = plan.verifier_python, plan.target_model
        if rival := plan.rival:
            command = rival.command(python, model, plan.cloud_draft_model, where)
            return Service(rival.kind, command, url, cores, settings, ready_path="/health")
        engine = ("--target", plan.target, "--model", model)
        command = (python, "-m", plan.verifier_module, *engine, *where)
        return Service("verifier", command, url, cores, {**FORGETFUL, **settings})

    async def _edge(self, name: str, edge: EdgePlan) -> Service:
        url = self.edge_urls[name] = f"http://{HOST}:{free_port()}"
        verifier_url = self.verifier_url
        if edge.link:
            behind = linked(verifier_url, edge.link)
            verifier_url, self.links[name] = await self.enter_async_context(behind)
        module = [self.plan.edge_module]
        if edge.rounds:
            module = ["bench.run.rounds", edge.rounds]
        command = (
            sys.executable, "-m", *module, "--host", HOST, "--port", str(port(url)),
            "--verifier-url", verifier_url,
            "--draft-model", edge.draft_model or self.plan.draft_model,
        )  # fmt: skip
        settings = as_environment("EDGE", edge.settings) | dict(self.plan.environment)
        cores = self.plan.verifier_cores if edge.colocated else self.plan.edge_cores
        return Service(name, command, url, cores, settings)


def free_port() -> int:
    """Return a port that nothing listens on, and that the kernel does not assign: the local
    ports of connections are above it, so that none can even connect to itself."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def port(url: str) -> int:
    """Return the port of a URL without a path."""
    return int(url.rsplit(":", 1)[1])
