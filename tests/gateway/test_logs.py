"""What a log never shows, and never does to those who write to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FAILS = """
import sys, structlog
from picospec.gateway.hosting import logs

def fail(prompt):
    raise RuntimeError("a bug")

logs.configure(sys.argv[1])
try:
    fail("".join(["my ", "secret"]))
except RuntimeError:
    structlog.get_logger("x").error("failed", exc_info=True)
"""

LOGS = """
import structlog
from picospec.gateway.hosting import logs

logs.configure("console")
structlog.get_logger("x").info("an event")
print("went on")
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


def test_a_full_disk_fails_nobody_who_logs() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", LOGS], cwd=ROOT, stdout=subprocess.PIPE, stderr=full,
            text=True, timeout=30, check=True,
        )  # fmt: skip

    assert ended.stdout == "went on\n"
