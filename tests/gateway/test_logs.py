"""What a log never shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAILS = """
import sys, structlog
from gateway.hosting import logs

def fail(prompt):
    raise RuntimeError("a bug")

logs.configure(sys.argv[1])
try:
    fail("".join(["my ", "secret"]))
except RuntimeError:
    structlog.get_logger("x").error("failed", exc_info=True)
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_values(form: str) -> None:
    command = [sys.executable, "-c", FAILS, form]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )

    assert "a bug" in ended.stderr
    assert "in fail" in ended.stderr
    assert "my secret" not in ended.stderr
