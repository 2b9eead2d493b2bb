"""`picospec up`: both ends on this machine, from the first health check to the last breath."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from gateway.hosting.cores import Pins
from gateway.hosting.processes import NeverHealthy, Service, ServiceError, keep_up

HOST = "127.0.0.1"
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and where."""

    edge_port: int = 8000
    verifier_port: int = 9000
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Of "edge" and "verifier", as their own files have them."""

    pins: Pins = field(default_factory=Pins)
    healthy_within_s: float = 300.0
    api_key: str | None = None
    """One the services accept, to ask the edge for its model."""

    @property
    def edge_url(self) -> str:
        return f"http://{HOST}:{self.edge_port}"

    @property
    def verifier_url(self) -> str:
        return f"http://{HOST}:{self.verifier_port}"

    def services(self) -> tuple[Service, Service]:
        """Return the verifier and the edge, in the order in which they start."""
        here = ("--host", HOST)
        there = ("--verifier-url", self.verifier_url)
        verifier = Service(
            name="verifier",
            command=(*_module("verifier", self.verifier_port), *here),
            url=self.verifier_url,
            cores=self.pins.verifier,
            environment=as_environment("VERIFIER", self.settings.get("verifier", {})),
        )
        edge = Service(
            name="edge",
            command=(*_module("edge_agent", self.edge_port), *here, *there),
            url=self.edge_url,
            cores=self.pins.edge,
            environment=as_environment("EDGE", self.settings.get("edge", {})),
        )
        return verifier, edge


def _module(name: str, port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", name, "--port", str(port))


def read_settings(path: Path) -> dict[str, dict[str, object]]:
    """Read a TOML file of the tables [edge] and [verifier]; ServiceError says what is wrong.

    What stands in the tables is for the services to check.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{path}: {error}") from error
    for name, table in tables.items():
        if name not in ("edge", "verifier") or not isinstance(table, dict):
            raise ServiceError(f"{path}: expected the tables [edge] and [verifier], not {name}")
    return tables


def as_environment(service: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the variables that the service reads; what is no text is JSON."""
    return {
        f"PICOSPEC_{service}__{name.upper()}": value
        if isinstance(value, str)
        else json.dumps(value)
        for name, value in settings.items()
    }


def check_free(port: int, variable: str) -> None:
    """Raise ServiceError when something listens on `port` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ServiceError(
                f"port {port} cannot be had ({reason}); choose another with {variable}"
            ) from error


async def until_healthy(
    services: Iterable[Service], client: httpx.AsyncClient, *, within_s: float, console: Console
) -> None:
    """Wait for each service's /health to say 200; raise NeverHealthy after `within_s`."""
    deadline = asyncio.get_running_loop().time() + within_s
    for service in services:
        with console.status(f"waiting for the {service.name} at {service.url}/health"):
            try:
                async with asyncio.timeout_at(deadline):
                    await _until_healthy(service, client)
            except TimeoutError:
                raise NeverHealthy(service.name, within_s) from None


async def _until_healthy(service: Service, client: httpx.AsyncClient) -> None:
    while True:
        try:
            if (await client.get(f"{service.url}/health")).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        await asyncio.sleep(POLL_S)


async def up(plan: Plan, services: Sequence[Service], console: Console) -> None:
    """Start `services`, say how to talk to them, and stay until a signal.

    All have stopped when it returns or raises a ServiceError.
    """
    check_free(plan.verifier_port, "VERIFIER_PORT")
    check_free(plan.edge_port, "EDGE_PORT")
    stopped, ready = asyncio.Event(), asyncio.Event()

    def hear(name: str, line: str) -> None:
        if not ready.is_set():
            return  # a service that fails to start is quoted in the error
        console.print(f"[dim]{name:>8} |[/] {escape(line)}", soft_wrap=True, highlight=False)

    async def announce() -> None:
        started_s = time.monotonic()
        model = await _model_when_healthy(plan, services, console)
        took_s = time.monotonic() - started_s
        console.print(f"\n[bold green]PicoSpec is up[/] after {took_s:.1f} s. Ctrl-C stops it.")
        for line in invitation(plan, model):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        ready.set()

    with _signals(stopped):
        await keep_up(services, hear=hear, meanwhile=announce, stopped=stopped)


async def _model_when_healthy(plan: Plan, services: Iterable[Service], console: Console) -> str:
    """Return the name of the model that the edge serves."""
    keys = {"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
    async with httpx.AsyncClient(trust_env=False, headers=keys) as client:
        await until_healthy(services, client, within_s=plan.healthy_within_s, console=console)
        try:
            listed = (await client.get(f"{plan.edge_url}/v1/models")).raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceError(f"the edge does not name its model: {error}") from error
    return str(listed.json()["data"][0]["id"])


def invitation(plan: Plan, model: str) -> tuple[str, ...]:
    """Lines for a shell and for Python that work as they stand; a key is named, never shown."""
    header, key = "", '"none"'
    if plan.api_key:
        header = ' -H "authorization: Bearer ${PICOSPEC_API_KEYS%%,*}"'
        key = '__import__("os").environ["PICOSPEC_API_KEYS"].split(",")[0]'
    messages = '[{"role": "user", "content": "Write a haiku about light."}]'
    body = f'{{"model": "{model}", "stream": true, "messages": {messages}}}'
    return (
        "",
        f"curl -N {plan.edge_url}/v1/chat/completions{header}"
        f" -H 'content-type: application/json' -d '{body}'",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{plan.edge_url}/v1", api_key={key})',
        f'answer = client.chat.completions.create(model="{model}", messages={messages})',
        "print(answer.choices[0].message.content)",
        "",
    )


@contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    """Within it, Ctrl-C, SIGTERM and a closed terminal set `stopped`."""
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in wanted:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)
