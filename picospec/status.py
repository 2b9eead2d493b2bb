"""`picospec status` asks the services of this machine what they run, and shows it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import httpx
from rich.console import Console

from gateway.hosting.strangers import is_loopback
from picospec.command_parts import HOST, START, visible
from picospec.configuration import loaded
from speculation.untrusted import decode_json

TIMEOUT_S: Final = 3.0
_EVERYWHERE: Final = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is asked, and the key that it is shown there."""

    service: str
    url: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What a service has said. state: "ok", "unavailable", "draining", "loading", or "" if it
    is not known; `error` has the reason then."""

    service: str
    url: str
    runs: bool
    state: str = ""
    error: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    """The body of its /status."""


def places(ports: Mapping[str, int | None]) -> list[Place]:
    """Return where the settings have each service; a port given here wins. Raises
    WrongSettings, OSError."""
    addresses = []
    for service, port in ports.items():
        settings = loaded(service, os.environ)
        host = settings.host
        if host in _EVERYWHERE or is_loopback(host):
            host = HOST
        scheme = "https" if settings.tls else "http"
        key = next((key.get_secret_value() for key in settings.api_keys), None)
        addresses.append(Place(service, f"{scheme}://{host}:{port or settings.port}", key))
    return addresses


async def look(places: Sequence[Place]) -> list[ServiceStatus]:
    """Ask all at once."""
    return await asyncio.gather(*map(_ask, places))


async def _ask(place: Place) -> ServiceStatus:
    headers = {"authorization": f"Bearer {place.key}"} if place.key else {}
    try:
        # the certificate has the name by which others reach it, and this is its own machine
        async with httpx.AsyncClient(
            verify=False, trust_env=False, timeout=TIMEOUT_S, headers=headers
        ) as client:
            response = await client.get(f"{place.url}/status")
    except httpx.ConnectError:
        return ServiceStatus(place.service, place.url, runs=False, error="not running")
    except httpx.TransportError as error:
        reason = f"something there does not answer ({type(error).__name__})"
        return ServiceStatus(place.service, place.url, runs=False, error=reason)
    return read(place, response.status_code, response.content)


def read(place: Place, status: int, content: bytes) -> ServiceStatus:
    """Read the answer of /status."""
    if status in (401, 403):
        reason = "runs, and wants a key: PICOSPEC_API_KEYS"
        return ServiceStatus(place.service, place.url, runs=True, error=reason)
    try:
        body = decode_json(content, dict[str, Any])
        if status == 503 and body["error"]["code"] == "loading":
            return ServiceStatus(place.service, place.url, runs=True, state="loading")
        if body["service"] == place.service:
            reason = visible(str(body.get("error") or ""))
            return ServiceStatus(
                place.service, place.url, True, str(body["status"]), reason, body
            )
    except (ValueError, LookupError, TypeError):
        pass
    reason = f"another service answers there, and no {place.service}"
    return ServiceStatus(place.service, place.url, runs=False, error=reason)


def show(statuses: Sequence[ServiceStatus], console: Console) -> None:
    """Print a line for each service that runs, and for each verifier that the edge uses
    elsewhere; then what is wrong."""
    rows = [row for each in statuses if each.runs for row in _rows(each, statuses)]
    cells = [[visible(cell) for cell in row] for row in (_COLUMNS, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells if rows else ():  # no table of rich's: it cuts what does not fit
        line = "  ".join(map(str.ljust, row, widths)).rstrip()
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for each in statuses:
        if each.error:
            line = f"{each.service} at {each.url}: {each.error}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not rows:
        console.print(f"Nothing runs here. {START}", soft_wrap=True, highlight=False)


_COLUMNS: Final = ("service", "state", "model", "draft model", "context", "answers", "up", "at")


def _rows(service: ServiceStatus, statuses: Sequence[ServiceStatus]) -> Iterator[Sequence[str]]:
    body = service.said
    model, draft = body.get("model") or {}, body.get("draft") or {}
    yield (
        service.service,
        service.state or "?",
        str(model.get("name", "-")),
        str(draft.get("model", "-")) if service.service == "edge" else "",
        str(model.get("context_tokens", "-")),
        str(body.get("requests", "-")),
        _lasting(body.get("uptime_s")),
        service.url,
    )
    yield from _further(body.get("models", ())[1:])
    shown = {each.url for each in statuses if each.runs}
    for each in body.get("verifiers", ()):
        if (url := str(each["url"]).rstrip("/")) not in shown:
            state = "ready" if each["ready"] else "away"
            trip = f"RTT {each['rtt_ms']:.0f} ms" if each["rtt_ms"] else ""
            used, lasting = str(each["sessions"]), _lasting(each.get("uptime_s"))
            yield "verifier", state, trip, "", "", used, lasting, url


def _further(models: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Yield a line for each further model of an edge."""
    for each in models:
        draft, context = each.get("draft") or {}, each.get("context_tokens")
        by = f"{draft.get('model') or '-'} ({draft['state']})" if draft else "-"
        yield "", str(each["state"]), str(each["name"]), by, str(context or "-"), "", "", ""


def _lasting(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def as_json(statuses: Sequence[ServiceStatus]) -> str:
    """Return an object with an entry for each service: how it was found, and what it said."""
    each = {one.service: asdict(one) for one in statuses}
    return json.dumps(each, indent=2, ensure_ascii=False)
