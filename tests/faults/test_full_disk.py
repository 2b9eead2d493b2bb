"""A disk that is full costs what would have been kept on it, and no answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.store import open_store
from tests.edge_agent.processes import ROOT
from tests.faults.rig.asking import Answer
from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.strikes import ask_again, serves_again

pytestmark = pytest.mark.faults
in_session = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A cache without a tokenizer, which reads the models of the store and takes no byte."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    store = open_store(os.environ).root
    (tmp_path / "models").mkdir()
    for folder in ("blobs", "names", "exact"):
        (tmp_path / "models" / folder).symlink_to(store / folder)
    with pytest.raises(OSError, match="No space left"):
        (tmp_path / "filling").write_bytes(bytes(1 << 20))

    yield tmp_path

    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@in_session
async def test_an_edge_that_starts_on_a_full_disk_answers_as_ever(
    world: World, undisturbed: dict[str, Answer], report: Report, full_disk: Path
) -> None:
    async with world.other_edge(45.0, disk=full_disk) as other:
        answers = await ask_again(other)
        log = other.edge.log.read_text()
        kept = os.listdir(full_disk / "models" / "tokenizers")

    report.add("edge starts on a full disk", "complete", 0.0, answers == undisturbed)
    assert answers == undisturbed
    assert log == ""
    assert kept == []


@in_session
async def test_verifiers_that_start_on_a_full_disk_answer_as_ever(
    world: World, undisturbed: dict[str, Answer], report: Report, full_disk: Path
) -> None:
    for verifier in world.verifiers:
        await verifier.kill()
        with verifier.on(full_disk):
            verifier.start()
    for verifier in world.verifiers:
        await verifier.ready(world.http)
    answers = await ask_again(world)
    logs = [(full_disk / f"{verifier.name}.log").read_text() for verifier in world.verifiers]

    report.add("verifiers start on a full disk", "complete", 0.0, answers == undisturbed)
    for verifier in world.verifiers:  # the next tests are for those with a disk
        await verifier.kill()
    await serves_again(world)
    assert answers == undisturbed
    assert logs == ["", ""]


def test_a_model_that_a_full_disk_has_no_room_for_is_one_line_of_error(full_disk: Path) -> None:
    environment = {**os.environ, "PICOSPEC_CACHE": str(full_disk / "empty")}
    command = "from picospec.main import app; app()"
    pull = [sys.executable, "-c", command, "models", "pull", "smollm2"]

    done = subprocess.run(pull, capture_output=True, text=True, env=environment, cwd=ROOT)

    assert done.returncode == 1
    assert re.fullmatch(r"error: .* needs \d+ bytes, 0 are free\n", done.stderr)
