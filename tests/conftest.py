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


TOGETHER = "end_to_end"
"""The files of this folder share services, which are started once."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in () if config.getoption("--long") else items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="needs --long"))
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        unit = item.path.parent if item.path.parent.name == TOGETHER else item.path
        item.add_marker(pytest.mark.xdist_group(str(unit)))
