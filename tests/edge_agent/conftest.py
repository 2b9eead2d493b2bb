from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft.llama import LlamaDrafter
from edge_agent.metrics import EdgeMetrics
from tests.edge_agent.fake_cache import FakeCache


@pytest.fixture
def metrics() -> EdgeMetrics:
    return EdgeMetrics(CollectorRegistry())


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
async def drafter(cache: FakeCache) -> AsyncIterator[LlamaDrafter]:
    drafter = LlamaDrafter(cache)
    yield drafter
    cache.gate.set()
    drafter.close()
