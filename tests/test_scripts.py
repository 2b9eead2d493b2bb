"""The scripts that make environments take the parts that belong to this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
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
