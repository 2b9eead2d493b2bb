"""A rolling restart loses and changes no answer."""

from __future__ import annotations

import pytest

from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.rolling import roll

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]


async def test_a_rolling_restart_loses_and_changes_no_answer(
    world: World, report: Report, is_long: bool
) -> None:
    answers, clients = (500, 16) if is_long else (40, 4)

    outcome = await roll(world, answers, clients)

    same = not (outcome.lost or outcome.changed)
    report.add("rolling restart", "answered", outcome.longest_gap_s, same, outcome.verdict)
    assert outcome.restarts
    assert not outcome.lost
    assert not outcome.changed
