"""Scripts of this checkout: environments, and the record of the long tests."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.edge_agent.processes import ROOT

RECORDER = '#!/bin/sh\necho "$@" >>"$LOG"\n'


@pytest.mark.system
def test_vllm_gets_the_llama_cpp_that_the_project_names_and_no_other_version(
    tmp_path: Path,
) -> None:
    scripts, python = tmp_path / "scripts", tmp_path / ".venv-vllm" / "bin" / "python"
    shutil.copytree(ROOT / "scripts", scripts)
    (scripts / "setup.sh").write_text("#!/bin/sh\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER)
    python.chmod(0o755)
    cache, log = tmp_path / "cache", tmp_path / "log"
    (cache / "safetensors" / "qwen2.5-coder-1.5b").mkdir(parents=True)
    environment = {**os.environ, "PICOSPEC_CACHE": str(cache), "LOG": str(log)}

    def run(script: str) -> str:
        return subprocess.run(
            [scripts / script], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    named = Path(run("llama-wheels.sh"))
    for place in (named, named.with_name("llama-cpp-python==9.9.9-1")):
        place.mkdir(parents=True)
        (place / f"llama_cpp_python-{place.name}.whl").touch()
    run("setup-vllm.sh")

    assert f"{named}/llama_cpp_python-" in log.read_text()
    assert "9.9.9" not in log.read_text()


def test_a_part_of_the_long_tests_is_due_until_it_passes_on_its_files(tmp_path: Path) -> None:
    long_tests = runpy.run_path(str(ROOT / "scripts/long_tests.py"))
    room, record = tmp_path / "room", tmp_path / "long.toml"
    room.mkdir()
    (room / "file.py").write_text("1")
    parts = {"quick": long_tests["Part"](["quick"], ["room"], "own")}
    fails, ran = [True], []

    def due(within_s: float = 60.0) -> int:
        def run(command: Sequence[str]) -> int:
            ran.append(command[0])
            return fails[0]

        kept = long_tests["Record"](record)
        return int(long_tests["run_due"](parts, kept, within_s, run, tmp_path))

    assert due() == 1
    fails[0] = False
    assert [due(), due()] == [0, 0]
    assert ran == ["quick"] * 2  # it failed, and it passed; then it was not due

    record.write_text(record.read_text().replace("seconds = 0", "seconds = 90"))
    (room / "file.py").write_text("2")
    assert [due(), due(within_s=100.0)] == [0, 0]
    assert ran == ["quick"] * 3  # within a minute there was no time for it
    (room / "__pycache__").mkdir()
    (room / "__pycache__" / "file.pyc").write_text("3")
    due()
    assert len(ran) == 3
