from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.metrics import EdgeMetrics
from tests.edge_agent.processes import Process, start


@pytest.fixture
def metrics() -> EdgeMetrics:
    return EdgeMetrics(CollectorRegistry())


@pytest.fixture(scope="module")
def verifier() -> Iterator[Process]:
    process = start()
    yield process
    process.kill()
