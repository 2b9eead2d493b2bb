"""`picospec up` runs both ends on this machine until it is stopped."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from edge_agent.draft.loading import AUTO
from edge_agent.settings import EdgeSettings, load
from gateway.hosting.cores import Pins
from gateway.hosting.parent_death import program
from gateway.hosting.processes import Service, ServiceError, keep_up
from gateway.hosting.readiness import until_ready
from gateway.hosting.settings import WrongSettings, as_environment
from gateway.system import STOPS, handled_signals
from picospec.chat_client import ChatError, client_of, first_model
from picospec.command_parts import HOST, visible
from picospec.configuration import SERVICES
from picospec.findings import Finding
from picospec.link import Link
from picospec.machine_checks import bind_error
from picospec.verifier_checks import check_edge
from verifier.options import llama_options

VERIFIER_KEY: Final = SERVICES["edge"].secrets["verifier_key"]
"""The variable with the key that an edge shows its verifiers."""

NO_DRAIN: Final = {"drain_timeout_s": 0}
"""With this setting of both ends, Ctrl-C waits for no answer."""


_QUIET: Final = {"verifier": {"log_requests": False}}
"""The edge logs each answer, and the verifier's line would say it again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The services to start: their ports, settings and arguments."""

    edge_port: int = 8000
    verifier_port: int = 9000
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Settings of "edge" and "verifier", each as in that service's own file."""

    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The command-line arguments of "edge" and "verifier", which override the settings."""

    others: Sequence[Sequence[str]] = ()
    """The arguments of further verifiers, one for each further target."""

    pins: Pins = field(default_factory=Pins)
    ready_within_s: float = 300.0
    api_key: str | None = None
    """A key that the edge accepts, with which it is asked for its model's name."""

    link_ports: Sequence[int] = ()
    """The edge reaches the verifiers by these ports; if empty, by the verifiers' own."""

    @property
    def edge_url(self) -> str:
        return f"http://{HOST}:{self.edge_port}"

    @property
    def verifier_ports(self) -> Sequence[int]:
        return range(self.verifier_port, self.verifier_port + 1 + len(self.others))

    @property
    def far_urls(self) -> list[str]:
        """Where the edge reaches the verifiers."""
        return [f"http://{HOST}:{port}" for port in self.link_ports or self.verifier_ports]

    @property
    def edge_settings(self) -> EdgeSettings:
        """The settings that the edge has. Raises ValueError, OSError."""
        _, draft = self.arguments.get("edge", ("--draft", AUTO))
        named = {**self.settings.get("edge", {}), "draft_model": draft, "verifier_url": None}
        key = {VERIFIER_KEY: self.api_key} if self.api_key else {}
        return load(None, {**key, **os.environ}, {**named, "verifier_urls": self.far_urls})

    def services(self) -> tuple[Service, ...]:
        """Return the verifiers and the edge, in the order in which they start."""
        urls = [word for url in self.far_urls for word in ("--verifier-url", url)]
        each = (self.arguments.get("verifier", ()), *self.others)
        verifiers = [
            self._service("verifier", "verifier", port, self.pins.verifier, *settings)
            for port, settings in zip(self.verifier_ports, each, strict=True)
        ]
        more = (*urls, *self.arguments.get("edge", ()))
        edge = self._service("edge", "edge_agent", self.edge_port, self.pins.edge, *more)
        return (*verifiers, edge)

    def _service(
        self, name: str, room: str, port: int, cores: frozenset[int], *more: str
    ) -> Service:
        listens = ("--port", str(port), "--host", HOST)
        command = (sys.executable, *program(room), *listens, *more)
        settings = {**NO_DRAIN, **_QUIET.get(name, {}), **self.settings.get(name, {})}
        environment = {
            **as_environment(name.upper(), settings),
            **sources_of(self.settings, os.environ),
        }
        if name == "edge" and self.api_key and not os.environ.get(VERIFIER_KEY):
            environment = {**environment, VERIFIER_KEY: self.api_key}  # both have these keys
        return Service(name, command, f"http://{HOST}:{port}", cores, environment)


def read_settings(path: Path) -> dict[str, dict[str, object]]:
    """Read a TOML file with the tables [edge], [verifier] and [models].

    The services check the fields of the first two; [models] has one, see `sources_of`.

    Raises WrongSettings.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WrongSettings(f"{path}: {error}") from error
    for name, table in tables.items():
        if name not in ("edge", "verifier", "models") or not isinstance(table, dict):
            raise WrongSettings(
                f"{path}: expected the tables [edge], [verifier] and [models], not {name}"
            )
    models = tables.get("models", {})
    if models.keys() - {"sources"} or not isinstance(models.get("sources", ""), str):
        raise WrongSettings(f'{path}: [models] has `sources`, a text such as "hub,wheels"')
    return tables


def sources_of(
    settings: Mapping[str, Mapping[str, object]], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return PICOSPEC_MODEL_SOURCES as the environment sets it, or else the table [models]."""
    name = "PICOSPEC_MODEL_SOURCES"
    sources = environ.get(name) or settings.get("models", {}).get("sources")
    return {name: str(sources)} if sources else {}


def with_options(
    settings: Mapping[str, Mapping[str, object]], arguments: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Return the settings with llama-server's options for the verifier. Raises WrongSettings
    for any other argument."""
    try:
        llama, others = llama_options(arguments)
    except ValueError as error:
        raise WrongSettings(str(error)) from None
    if others:
        raise WrongSettings(f"there is no option {others[0]}; picospec up --help lists all")
    tables = {name: dict(table) for name, table in settings.items()}
    if llama:
        verifier = tables.setdefault("verifier", {})
        table = verifier.get("llama", {})
        verifier["llama"] = {**(table if isinstance(table, Mapping) else {}), **llama}
    return tables


def check_plain(
    settings: Mapping[str, Mapping[str, object]], environ: Mapping[str, str]
) -> None:
    """Raise WrongSettings if an end should use TLS, which `picospec up` does not offer."""
    tls_tables = [f"[{name}.tls]" for name, table in settings.items() if "tls" in table]
    prefixes = tuple(f"PICOSPEC_{name}__TLS" for name in ("EDGE", "VERIFIER"))
    tls_tables += sorted(name for name in environ if name.upper().startswith(prefixes))
    if tls_tables:
        raise WrongSettings(
            f"{', '.join(tls_tables)}: `picospec up` serves this machine alone, without TLS;"
            " start `picospec verifier` and `picospec edge` instead"
        )


def check_settings(
    settings: Mapping[str, Mapping[str, object]], environ: Mapping[str, str], draft: str
) -> None:
    """Raise WrongSettings, OSError if an end would not start with its settings; before models
    are fetched for it. draft: the draft model, which may be "auto"."""
    for name, kind in SERVICES.items():
        more = {"draft_model": draft.replace(AUTO, "a fitting one")} if name == "edge" else {}
        kind.load(None, environ, {**settings.get(name, {}), **more})


def check_free(port: int, variable: str) -> None:
    """Raise ServiceError if something already listens on `port`."""
    if why := bind_error(port):
        raise ServiceError(f"port {port} cannot be had ({why}); choose another with {variable}")


async def up(plan: Plan, services: Sequence[Service], console: Console) -> None:
    """Start `services`, print how to use them, and wait for a signal.

    A service that fails later is restarted, a few times. All have stopped when this function
    returns or raises a ServiceError.
    """
    for port in plan.verifier_ports:
        check_free(port, "VERIFIER_PORT")
    check_free(plan.edge_port, "EDGE_PORT")
    stopped, ready = asyncio.Event(), asyncio.Event()

    def show(name: str, line: str) -> None:
        if ready.is_set():  # before that, the error quotes a service that fails
            text = f"[dim]{name:>8} |[/] {escape(line)}"
            console.print(text, soft_wrap=True, highlight=False)

    async def announce() -> None:
        started_s = time.monotonic()
        model = await _model_when_ready(plan, services, console)
        took_s = time.monotonic() - started_s
        console.print(f"\n[bold green]PicoSpec is up[/] after {took_s:.1f} s. Ctrl-C stops it.")
        for line in usage_lines(plan, model):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print(f"Open [bold]{plan.edge_url}/[/] in a browser.", highlight=False)
        ready.set()
        for line in await _expectation(plan):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    with handled_signals(asyncio.get_running_loop(), dict.fromkeys(STOPS, stopped.set)):
        await keep_up(
            services, on_line=show, meanwhile=announce, stopped=stopped, restarts=ready
        )


async def _expectation(plan: Plan) -> list[str]:
    """Return lines that say what the edge will gain here, or why that is not known."""
    try:
        findings = await check_edge(plan.edge_settings)
    except (ValueError, OSError) as error:
        return [f"What drafting gains here is not known: {error}"]
    return told(findings)


def told(findings: Sequence[Finding]) -> list[str]:
    """Return lines of the doctor's last finding, and of those before it with an advice. That on
    the context is left out: it matters to agents alone."""
    bad = [each for each in findings[:-1] if each.advice and each.subject != "context"]
    return [
        visible(f"{_sentence(each)}.")
        + visible(f" What to do: {each.advice}." if each.advice else "")
        for each in (*bad, findings[-1])
    ]


def _sentence(finding: Finding) -> str:
    if finding.subject == "gain":
        return finding.found[:1].upper() + finding.found[1:]
    return f"{finding.subject.capitalize()}: {finding.found}"


async def up_at_a_distance(plan: Plan, rtt_ms: float, console: Console) -> None:
    """Do as `up`, with an emulated link of this round trip between both ends."""
    async with AsyncExitStack() as stack:
        links = [
            await stack.enter_async_context(Link((HOST, port), rtt_ms / 1000))
            for port in plan.verifier_ports
        ]
        far = replace(plan, link_ports=[link.port for link in links])
        console.print(f"Both ends are {rtt_ms:g} ms of round trip apart: the link is emulated.")
        await up(far, far.services(), console)


async def _model_when_ready(plan: Plan, services: Iterable[Service], console: Console) -> str:
    """Return the name of the model that the edge serves."""
    async with client_of(plan.edge_url, plan.api_key) as client:
        with console.status("") as status:

            def show(service: Service) -> None:
                status.update(f"waiting for the {service.name} at {service.url}/ready")

            await until_ready(services, client, plan.ready_within_s, on_wait=show)
        try:
            return (await first_model(client)).id
        except ChatError as error:
            raise ServiceError(f"the edge does not name its model: {error}") from error


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
    post = f"curl -N {plan.edge_url}/v1/chat/completions{header}"
    return (
        "",
        f"{post} -H 'content-type: application/json' -d '{body}'",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{plan.edge_url}/v1", api_key={key})',
        f'answer = client.chat.completions.create(model="{model}", messages={messages})',
        "print(answer.choices[0].message.content)",
        "",
        f"Codex, Claude Code, an editor: picospec connect --edge-port {plan.edge_port}",
        "",
    )
