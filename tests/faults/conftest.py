"""The fault campaign's options and fixtures. `--long` adds what takes minutes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.rig.asking import Answer
from tests.faults.rig.report import Report
from tests.faults.rig.world import Plan, World
from tests.faults.strikes import EDGE_DESCRIPTORS, ask_again

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the whole fault campaign")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes too long for the short campaign")
    config.stash[REPORT] = Report()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long", default=False):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="needs --long"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    config.stash[REPORT].show()


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--long", default=False))


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


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
