"""A tenant that floods the edge takes no more than its limits: another's answers take as long
as when it asks what it may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from statistics import median

import pytest
import pytest_asyncio

from gateway.keys import KeyLimits, add_key
from tests.faults.flood import ALLOWED_EVERY_S
from tests.faults.rig.generating import generate, summary
from tests.faults.rig.report import Report
from tests.faults.rig.world import FOLDER, Plan, World
from tests.faults.rolling import questions

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

KEYS = FOLDER / "keys.toml"
PLAN = Plan(
    verifiers=1,
    folder=FOLDER / "tenants",
    edge_environment={"PICOSPEC_EDGE__KEYS_FILE": str(KEYS)},
)
LONGER = 1.1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys() -> dict[str, str]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    KEYS.unlink(missing_ok=True)
    limits = KeyLimits(requests_a_minute=round(60 / ALLOWED_EVERY_S), sessions=1)
    return {
        "flooder": add_key(KEYS, "flooder", limits),
        "other": add_key(KEYS, "other", KeyLimits()),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(keys: dict[str, str]) -> AsyncIterator[World]:
    async with World(PLAN) as started:
        started.http.headers["authorization"] = f"Bearer {keys['other']}"
        yield started


async def test_a_tenant_that_floods_delays_no_other(
    world: World, keys: dict[str, str], is_long: bool, report: Report
) -> None:
    seconds = 60.0 if is_long else 5.0
    key = ("--key", keys["flooder"])
    await generate(world, "questions", 2.0, *key)

    (calm_s, _), (flooded_s, turned_away) = [
        await beside(world, seconds, *key, *hostile) for hostile in ((), ("--hostile",))
    ]

    note = f"without the flood {calm_s:.2f} s; {summary(turned_away)}"
    report.add("a tenant floods", "others answered", flooded_s, note=note)
    assert set(turned_away) <= {"200", "429"}
    assert turned_away["429"] > turned_away["200"]
    assert not is_long or flooded_s < calm_s * LONGER


async def beside(world: World, seconds: float, *options: str) -> tuple[float, dict[str, int]]:
    """Return how long another tenant waits, mostly, and what became of a load."""
    load = asyncio.create_task(generate(world, "questions", seconds, *options))
    took_s = []
    while not load.done():
        begun = time.monotonic()
        for body in questions()[:3]:
            assert not (await world.ask(body)).error
        took_s.append(time.monotonic() - begun)
    return median(took_s), load.result()
