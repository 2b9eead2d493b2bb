"""`picospec up`: runs both ends on this machine, until it is stopped."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.markup import escape

from gateway.hosting.cores import Pins
from gateway.hosting.health import until_healthy
from gateway.hosting.processes import Service, ServiceError, keep_up
from gateway.hosting.settings_sources import as_environment

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and where."""

    edge_port: int = 8000
    verifier_port: int = 9000
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Settings of "edge" and "verifier", each as in that service's own file."""

    pins: Pins = field(default_factory=Pins)
    healthy_within_s: float = 300.0
    api_key: str | None = None
    """A key that the edge accepts; it is asked for its model's name."""

    @property
    def edge_url(self) -> str:
        return f"http://{HOST}:{self.edge_port}"

    @property
    def verifier_url(self) -> str:
        return f"http://{HOST}:{self.verifier_port}"

    def services(self) -> tuple[Service, Service]:
        """Return the verifier and the edge, in the order in which they start."""
        verifier = Service(
            "verifier",
            _command("verifier", self.verifier_port),
            self.verifier_url,
            self.pins.verifier,
            as_environment("VERIFIER", self.settings.get("verifier", {})),
        )
        edge = Service(
            "edge",
            (*_command("edge_agent", self.edge_port), "--verifier-url", self.verifier_url),
            self.edge_url,
            self.pins.edge,
            as_environment("EDGE", self.settings.get("edge", {})),
        )
        return verifier, edge


def _command(module: str, port: int) -> tuple[str, ...]:
    return sys.executable, "-m", module, "--port", str(port), "--host", HOST


def read_settings(path: Path) -> dict[str, dict[str, object]]:
    """Read a TOML file of the tables [edge] and [verifier], whose fields the services check.

    Raises ServiceError.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ServiceError(f"{path}: {error}") from error
    for name, table in tables.items():
        if name not in ("edge", "verifier") or not isinstance(table, dict):
            raise ServiceError(f"{path}: expected the tables [edge] and [verifier], not {name}")
    return tables


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


async def up(plan: Plan, services: Sequence[Service], console: Console) -> None:
    """Start `services`, print how to use them, and stay until a signal.

    All have stopped when it returns or raises a ServiceError.
    """
    check_free(plan.verifier_port, "VERIFIER_PORT")
    check_free(plan.edge_port, "EDGE_PORT")
    stopped, ready = asyncio.Event(), asyncio.Event()

    def show(name: str, line: str) -> None:
        if not ready.is_set():
            return  # the error quotes a service that fails to start
        console.print(f"[dim]{name:>8} |[/] {escape(line)}", soft_wrap=True, highlight=False)

    async def announce() -> None:
        started_s = time.monotonic()
        model = await _model_when_healthy(plan, services, console)
        took_s = time.monotonic() - started_s
        console.print(f"\n[bold green]PicoSpec is up[/] after {took_s:.1f} s. Ctrl-C stops it.")
        for line in usage_lines(plan, model):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        ready.set()

    with _signals(stopped):
        await keep_up(services, on_line=show, meanwhile=announce, stopped=stopped)


async def _model_when_healthy(plan: Plan, services: Iterable[Service], console: Console) -> str:
    """Return the name of the model that the edge serves."""
    keys = {"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
    async with httpx.AsyncClient(trust_env=False, headers=keys) as client:
        with console.status("") as status:
            await until_healthy(
                services,
                client,
                within_s=plan.healthy_within_s,
                on_wait=lambda service: status.update(
                    f"waiting for the {service.name} at {service.url}/health"
                ),
            )
        try:
            listed = (await client.get(f"{plan.edge_url}/v1/models")).raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceError(f"the edge does not name its model: {error}") from error
    return str(listed.json()["data"][0]["id"])


def usage_lines(plan: Plan, model: str) -> tuple[str, ...]:
    """Return lines for a shell and for Python that work when copied.

    They read a key from the environment, so that none is shown.
    """
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
    """Have Ctrl-C, SIGTERM and a closed terminal set `stopped`, and not end the process."""
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in wanted:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)
