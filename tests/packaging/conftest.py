"""The wheel, as `make wheel` builds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge_agent.processes import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([ROOT / "scripts/build-wheel.sh", sys.executable, folder], check=True)
    (found,) = folder.iterdir()
    return found
