"""What an edge says of itself while its verifier is away, and while it drains."""

from __future__ import annotations

from pathlib import Path

import httpx

from picospec.bench.run.services import free_port
from picospec.cli.chatting.client import POOL
from picospec.edge_agent.app import build
from picospec.edge_agent.settings import load
from picospec.gateway.accounts.access import HEALTH_PATHS
from picospec.gateway.drain import Drain
from picospec.models.store import open_store


def client_of(drain: Drain, cache: Path) -> httpx.AsyncClient:
    """Return a client of an edge whose verifier is away."""
    away = f"http://127.0.0.1:{free_port()}"
    settings = load(None, {}, {"drafter": "none", "verifier_url": away})
    app = build(settings, open_store({"PICOSPEC_CACHE": str(cache)}), drain)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost"
    )


async def test_an_edge_without_a_verifier_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with client_of(Drain(), tmp_path) as client:
        health, ready = await client.get("/health"), await client.get("/ready")
        same = [await client.get(path) for path in HEALTH_PATHS]

    assert (health.status_code, health.json()["state"]) == (200, "unavailable")
    assert {each.text for each in same} == {health.text}
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "verifier_unavailable")


async def test_a_stranger_sees_no_address_of_a_verifier(tmp_path: Path) -> None:
    async with client_of(Drain(), tmp_path) as client:
        shown = [(await client.get(path)).text for path in ("/health", "/ready", "/metrics")]
        status = (await client.get("/status")).json()

    address = status["verifiers"][0]["url"]
    assert address in status["error"]
    assert address.removeprefix("http://") not in "".join(shown)
    assert 'picospec:edge_verifier_ready{verifier="0"} 0.0' in shown[2]


async def test_a_pool_is_emptied_also_where_nothing_is_kept(tmp_path: Path) -> None:
    async with client_of(Drain(), tmp_path) as client:
        answers = [await client.request(how, POOL) for how in ("DELETE", "GET")]

    assert [answer.status_code for answer in answers] == [204, 405]


async def test_an_edge_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    drain = Drain()
    async with client_of(drain, tmp_path) as client:
        drain.begin(60.0)
        health, ready = await client.get("/health"), await client.get("/ready")

    assert (health.status_code, health.json()["state"]) == (200, "draining")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert ready.headers["retry-after"] == "1"
