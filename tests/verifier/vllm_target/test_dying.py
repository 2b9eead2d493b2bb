"""A process of vLLM's ends when the process that started it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from picospec.verifier.vllm_target.dying import die_with_parent
from tests.gateway.test_processes import ONLY_LINUX, ends_with, start


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=ONLY_LINUX)])
async def test_a_multiprocessing_child_dies_with_its_parent(
    tmp_path: Path, stopped: bool
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from picospec.verifier.vllm_target.dying import die_with_parent\n"
        "def child():\n"
        "    print(os.getpid(), die_with_parent(), die_with_parent(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=child).start()\n"
        "    time.sleep(60)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(20):
        pid, *watches = (await printed.readline()).decode().split()
    if stopped:
        os.kill(int(pid), signal.SIGSTOP)

    gone = await ends_with(parent, int(pid))

    assert watches == ["True", "True"]
    assert gone


@ONLY_LINUX
async def test_a_core_whose_parent_is_gone_before_it_looks_dies(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time, types\n"
        "def core(*args):\n"
        "    print('waits for its parent', flush=True)\n"
        "    time.sleep(60)\n"
        "module = types.ModuleType('vllm.v1.engine.core')\n"
        "module.EngineCoreProc = types.SimpleNamespace(run_engine_core=core)\n"
        "sys.modules['vllm.v1.engine.core'] = module\n"
        "from picospec.verifier.vllm_target.dying import run_engine_core\n"
        "def child(parent):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while os.getppid() == parent:\n"
        "        time.sleep(0.01)\n"
        "    run_engine_core()\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    spawn.Process(target=child, args=(os.getpid(),)).start()\n"
        "    time.sleep(60)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(20):
        pid = int(await printed.readline())

    assert await ends_with(parent, pid)


def test_a_process_that_multiprocessing_did_not_start_is_not_watched() -> None:
    assert not die_with_parent()
