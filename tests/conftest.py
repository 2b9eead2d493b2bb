"""Files share processes: where several run tests (pytest-xdist), each takes one file at a time.

Hypothesis measures no time here: a busy host is nobody's fault.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update", action="store_true", help="write the corpora of tests/gateway anew"
    )
    parser.addoption("--long", action="store_true", help="also what is marked as long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in () if config.getoption("--long") else items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="needs --long"))


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
