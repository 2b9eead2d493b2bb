"""`--part 1/2` runs half of the tests, so that two processes can share them (test-parts.sh).

Hypothesis measures no time here: a busy host is nobody's fault.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

TOGETHER = "end_to_end"
"""A folder whose files share services that are started once."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="which part of the files, of how many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, str(config.getoption("--part")).split("/"))

    def unit(item: pytest.Item) -> Path:
        return item.path.parent if item.path.parent.name == TOGETHER else item.path

    units = {path: at for at, path in enumerate(dict.fromkeys(map(unit, items)))}
    items[:] = [item for item in items if units[unit(item)] % parts == part - 1]
