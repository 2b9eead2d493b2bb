"""The services of the fault campaign, which all its tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.faults.rig.asking import Answer
from tests.faults.rig.world import Plan, World
from tests.faults.strikes import EDGE_DESCRIPTORS, ask_again


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing() -> AsyncIterator[World]:
    async with World(Plan(edge_descriptors=EDGE_DESCRIPTORS)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def world(standing: World) -> AsyncIterator[World]:
    """Whatever a test leaves behind, the next one begins without faults."""
    yield standing
    await standing.heal()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def undisturbed(standing: World) -> dict[str, Answer]:
    """The answers that nothing happened to."""
    return await ask_again(standing)
