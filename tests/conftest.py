"""Core tests run on a virtual clock, and fail at a socket, a process or a real sleep (guards).

Files share processes: where several run tests (pytest-xdist), each takes one file at a time.
Hypothesis measures no time here: a busy host is nobody's fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

from tests.guards import SYSTEM, TESTS, guarded, is_core, is_listed
from tests.virtual_time import Clock, VirtualLoop, virtual

FOLDERS = [each.name for each in TESTS.iterdir() if each.is_dir()]
pytest.register_assert_rewrite(*(f"tests.{name}" for name in FOLDERS))  # what they share, too

settings.register_profile(
    "without deadlines", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("without deadlines")

CLOCK = Clock()
"""Shows the time of the core test that runs, which begins at 0."""


def pytest_configure(config: pytest.Config) -> None:
    for each in SYSTEM:
        assert (TESTS / each).exists(), f"SYSTEM of tests/guards.py names {each}"


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if is_core(item):
        return {"virtual": lambda: VirtualLoop(CLOCK)}
    return {"real": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not is_core(item):
        return (yield)
    CLOCK.now_s = 0.0
    with virtual(CLOCK):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if not is_core(item):
        return (yield)
    with guarded() as deeds:
        yield
    if deeds:
        pytest.fail(deeds[0])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update", action="store_true", help="write anew what corpora and pages expect"
    )
    parser.addoption("--long", action="store_true", help="also what is marked as long")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_listed(item):
            item.add_marker("system")
    for item in () if config.getoption("--long") else items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="needs --long"))


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    """Return True if times are judged, too: by hand, on a quiet host."""
    return bool(pytestconfig.getoption("--long"))


TOGETHER = "tests/end_to_end/"
"""The files of this folder share services, which are started once."""


@pytest.hookimpl(optionalhook=True)  # make test-vllm has no pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return TOGETHER if file.startswith(TOGETHER) else file

    return Rooms(config, log) if config.getvalue("dist") == "loadfile" else None
