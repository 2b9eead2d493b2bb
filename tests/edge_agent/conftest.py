from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft.llama import LlamaDrafter
from edge_agent.metrics import EdgeMetrics
from tests.edge_agent.fake_cache import FakeCache
from tests.edge_agent.processes import Process, start


@pytest.fixture
def metrics() -> EdgeMetrics:
    return EdgeMetrics(CollectorRegistry())


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    process = start()
    yield process
    process.kill()


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
async def drafter(cache: FakeCache) -> AsyncIterator[LlamaDrafter]:
    drafter = LlamaDrafter(cache)
    yield drafter
    cache.gate.set()
    drafter.close()
