"""A client that goes away leaves nothing behind."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from bench.identity.comparison import EDGES
from bench.run.services import Services, ServicesPlan

pytestmark = pytest.mark.models

BODY = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Count to one thousand."}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 2000,
}


@pytest.fixture
def plan() -> ServicesPlan:
    return ServicesPlan("smollm2", "smollm2", {"model": EDGES["model"]})


async def test_a_client_that_goes_away_frees_the_target_within_a_pass(
    plan: ServicesPlan,
) -> None:
    async with (
        Services(plan) as services,
        httpx.AsyncClient(trust_env=False, timeout=20) as client,
    ):
        body = BODY | {"model": await _model(client, services)}
        url = f"{services.edge_urls['model']}/v1/chat/completions"
        async with client.stream("POST", url, json=body) as response:
            async for line in response.aiter_lines():
                if '"content"' in line:
                    break
            assert await _open_sessions(client, services) == 1

        async with asyncio.timeout(2):
            while await _open_sessions(client, services):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)


async def _model(client: httpx.AsyncClient, services: Services) -> str:
    listed = await client.get(f"{services.verifier_url}/v1/models")
    return str(listed.json()["data"][0]["id"])


async def _open_sessions(client: httpx.AsyncClient, services: Services) -> int:
    text = (await client.get(f"{services.verifier_url}/metrics")).text
    values = [
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("picospec:sessions_open")
    ]
    return int(sum(values))
