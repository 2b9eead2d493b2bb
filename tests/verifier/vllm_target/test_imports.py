"""vLLM's core and worker processes load nothing that only the serving process needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_vllms_core_and_workers_import_nothing_of_the_gateway() -> None:
    script = """
import sys
from picospec.verifier.vllm_target.plugin import register
register()
import picospec.verifier.vllm_target.core.scheduler
import picospec.verifier.vllm_target.worker.v1
print(*(name for name in sys.modules if name.startswith("picospec.gateway")))
"""
    environment = {**os.environ, "VLLM_PLUGINS": "picospec"}

    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )

    assert ran.stdout == "\n", ran.stderr
