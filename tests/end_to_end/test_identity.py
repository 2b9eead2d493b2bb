"""The main promise on real models and real services: the edge says what the target says.

`python -m bench.identity` asks all prompts for longer answers; this is the short form.
"""

from __future__ import annotations

import pytest

from bench.identity import EDGES, compare
from bench.prompts import Selection, read
from bench.stand import Stand, StandPlan

pytestmark = pytest.mark.models

PAIRS = [
    pytest.param("smollm2", 16, ["far", "noise", "eager"], id="smollm2"),
    pytest.param("qwen2.5-coder", 12, ["far", "eager"], id="qwen2.5-coder"),
]


@pytest.mark.parametrize(("pair", "tokens", "edges"), PAIRS)
async def test_the_text_is_the_same_with_and_without_an_edge(
    pair: str, tokens: int, edges: list[str]
) -> None:
    prompts = read(selection=Selection(per_family=1))
    plan = StandPlan(pair, pair, {name: EDGES[name] for name in edges})

    async with Stand(plan) as stand:
        answers = [a async for a in compare(stand, prompts, [0.0, 1.0], tokens)]

    assert [answer for answer in answers if answer.identical is False] == []
    accepted = sum(a.speculation.get("num_accepted_draft_tokens", 0) for a in answers)
    assert accepted > 0  # else the drafts were not put to the test


async def test_separate_judging_runs_end_to_end_at_temperature_1() -> None:
    prompts = read(selection=Selection(per_family=1))
    plan = StandPlan("smollm2", "smollm2", {"separate": EDGES["separate"]})

    async with Stand(plan) as stand:
        answers = [a async for a in compare(stand, prompts, [1.0], 24)]

    separate = [answer for answer in answers if answer.arm == "separate"]
    assert all(answer.tokens == 24 or answer.text for answer in separate)
    assert sum(a.speculation["num_accepted_draft_tokens"] for a in separate) > 0
