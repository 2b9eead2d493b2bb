"""The fault campaign: what happens to services, disks, clocks and links changes no answer.

Four answers of different kinds (rig/asking.py) are generated at a time by a real model. When
each has begun, the fault strikes. Afterwards they must be those that nothing happened to, with
log-probabilities and usage; no session may be left, and all services must serve.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.store import open_store
from tests.faults.rig.asking import Answer
from tests.faults.rig.world import World
from tests.faults.strikes import FAULTS, ask_again, serves_again, struck

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_answer_is_changed_by(
    fault: str, world: World, undisturbed: dict[str, Answer]
) -> None:
    answers, at = await struck(world, FAULTS[fault])

    gap_s = max(answer.gap_s(at) for answer in answers.values())
    sys.stdout.write(f"{fault}: the longest time without text is {gap_s:.2f} s\n")
    await serves_again(world)
    assert answers == undisturbed


async def test_a_killed_edges_answers_can_be_asked_for_again(
    world: World, undisturbed: dict[str, Answer]
) -> None:
    answers, _ = await struck(world, lambda world: world.edge.kill())
    await serves_again(world)

    for kind, answer in answers.items():  # on a fast host some had ended before
        assert answer.outcome in ("connection", "cut") or answer == undisturbed[kind]
        assert undisturbed[kind].text.startswith(answer.text)
    assert answers != undisturbed
    assert await ask_again(world) == undisturbed


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


async def test_services_that_start_on_a_full_disk_answer_as_ever_and_log_nothing(
    world: World, undisturbed: dict[str, Answer], full_disk: Path
) -> None:
    for service in world.services:
        await service.kill()
        with service.on(full_disk):
            service.start()
    for service in world.services:
        await service.ready(world.http)
    answers = await ask_again(world)
    logs = [(full_disk / service.log.name).read_text() for service in world.services]

    for service in world.services:  # the next tests are for those with a disk
        await service.kill()
    await serves_again(world)
    assert answers == undisturbed
    assert logs == [""] * len(logs)
    assert list((full_disk / "models" / "tokenizers").iterdir()) == []
