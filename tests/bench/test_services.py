"""The bench's test services: what it starts is watched from the start."""

from __future__ import annotations

import asyncio

import pytest

from picospec.bench.run.services import Services, ServicesPlan
from picospec.gateway.hosting.processes import ServiceDied


async def test_a_verifier_that_dies_at_start_is_the_error_and_not_a_long_wait() -> None:
    services = Services(ServicesPlan("no-model-of-this-name", "smollm2", {}))

    async with asyncio.timeout(60):
        with pytest.raises(ServiceDied, match="no model 'no-model-of-this-name'"):
            async with services:
                pass
