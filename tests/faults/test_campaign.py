"""The fault campaign: what happens to services, links and clocks changes no answer.

Four answers are generated at a time, of different kinds (tests/faults/asking.py). When each has
begun, the fault strikes. Afterwards they must be, with log-probabilities and usage, those that
nothing happened to, no session may be left, and all services must serve.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import pytest

from tests.faults.rig.asking import Answer, long_prompt
from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.rolling import roll
from tests.faults.strikes import FAULTS, Fault, kill, serves_again, struck, struck_one

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]

QUIET_S: Final = 5.0
"""What the answers take together that nothing happens to, on a quiet host."""

PROMPT_BYTES: Final = 600
"""Less than the long prompt has on the link, and more than any other request."""


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[pytest.mark.long] * f.is_long) for f in FAULTS],
)
async def test_no_answer_is_changed_by(
    fault: Fault, world: World, undisturbed: dict[str, Answer], report: Report, is_long: bool
) -> None:
    answers, at = await struck(world, fault.strike)

    ends = ", ".join(sorted({answer.outcome for answer in answers.values()}))
    gap_s = max(answer.gap_s(at) for answer in answers.values())
    report.add(fault.name, ends, gap_s, answers == undisturbed)
    await serves_again(world)
    assert answers == undisturbed
    assert not is_long or gap_s < fault.within_s * slowness(undisturbed)


def slowness(undisturbed: Mapping[str, Answer]) -> float:
    """Return how much longer answers take here than on a quiet host of two cores."""
    began = min(answer.came_at[0] for answer in undisturbed.values())
    return max(1.0, (max(a.came_at[-1] for a in undisturbed.values()) - began) / QUIET_S)


@pytest.mark.long
async def test_a_killed_verifier_is_noticed_within_a_second_and_then_only_read_again(
    world: World, report: Report
) -> None:
    """The prompt is long, so that the edge's request to go on can be told from all others on
    the link."""
    read_s = max([await _reading_s(world, number) for number in range(2)])
    for number in range(5):
        noticed_s, gap_s = await _killed(world, f"Round {number}.")
        note = f"noticed after {noticed_s:.2f} s; reading takes {read_s:.2f} s"
        report.add("verifier SIGKILL, long prompt", "measured", gap_s, note=note)
        assert noticed_s < 1.0
        assert gap_s < noticed_s + 2 * read_s + 1.0
        await serves_again(world)


async def _reading_s(world: World, number: int) -> float:
    """Return how long it takes until a prompt that no slot holds has its first piece."""
    begun = time.monotonic()
    answer = await world.ask(long_prompt(f"Number {number}."))
    return answer.came_at[0] - begun


async def _killed(world: World, beginning: str) -> tuple[float, float]:
    """Kill a verifier in the middle of an answer. Return when a request to go on reached the
    link of another one, and when there was text again, in seconds after the kill."""
    answer, at = await struck_one(world, long_prompt(beginning), kill)

    assert answer.outcome in ("stop", "length")
    opened = [verifier.link.sent_up_at(at, PROMPT_BYTES) for verifier in world.verifiers]
    return min(when for when in opened if when) - at, answer.gap_s(at)


async def test_a_rolling_restart_loses_and_changes_no_answer(
    world: World, report: Report, is_long: bool
) -> None:
    answers, clients = (500, 16) if is_long else (32, 4)

    outcome = await roll(world, answers, clients)

    same = not (outcome.lost or outcome.changed)
    report.add("rolling restart", "answered", outcome.longest_gap_s, same, outcome.verdict)
    assert outcome.restarts
    assert not outcome.lost
    assert not outcome.changed
