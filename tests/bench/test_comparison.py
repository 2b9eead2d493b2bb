"""Every prompt is asked of everyone, as many at once as wanted, and each difference counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from picospec.bench.data.prompts import Prompt
from picospec.bench.identity.comparison import (
    Answer,
    Divergence,
    batched,
    compare,
    is_defect,
    tally,
)
from picospec.bench.run.client import Reply

PROMPTS = [Prompt(str(i), "code", f"say {i}") for i in range(5)]
PARTED = Divergence(3, " a", " b", plain_gap=0.125, edge_gap=0.0, step=0.125)


def answer(arm: str, prompt: Prompt, temperature: float, text: str) -> Answer:
    reply = Reply(text, 4, (), 0.0, 1.0, drafted=6, accepted=5, target_passes=2)
    return Answer(arm, prompt.id, temperature, reply)


class Services:
    """Answers with the prompt; the edge called `wrong` gives another answer to prompt 3."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def ask(self, url: str, arm: str, prompt: Prompt, temperature: float) -> Answer:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        differs = arm == "wrong" and prompt.id == "3"
        return answer(arm, prompt, temperature, "another" if differs else prompt.prompt)


async def compared_answers(services: Services, sessions: int) -> list[Answer]:
    batches = batched([0.0, 1.0], PROMPTS, sessions)
    edges = {"right": "http://right", "wrong": "http://wrong"}
    compared = compare("http://plain", edges, batches, services.ask, lambda *_: PARTED)
    return [each async for each in compared]


async def test_everyone_is_asked_everything_so_many_at_once() -> None:
    services = Services()

    answers = await compared_answers(services, sessions=2)

    asked = {(a.arm, a.prompt, a.temperature) for a in answers}
    assert len(answers) == len(asked) == 3 * 5 * 2
    assert services.most == 2


async def test_the_edges_are_compared_with_the_plain_engine() -> None:
    answers = await compared_answers(Services(), sessions=5)

    assert {a.identical for a in answers if a.arm == "plain"} == {None}
    different = [(a.arm, a.prompt) for a in answers if a.identical is False]
    assert different == [("wrong", "3")] * 2
    assert {a.divergence for a in answers if a.identical} == {None}


async def test_a_difference_is_a_defect_unless_it_was_a_near_tie() -> None:
    (different, *_) = [
        a for a in await compared_answers(Services(), sessions=5) if a.identical is False
    ]

    assert not is_defect(different)
    assert is_defect(replace(different, divergence=None))
    far = replace(PARTED, plain_gap=0.5, edge_gap=0.5)
    assert is_defect(replace(different, divergence=far))
    assert not is_defect(replace(different, identical=True))


async def test_the_tally_counts_each_arm_and_tells_each_difference() -> None:
    answers = await compared_answers(Services(), sessions=5)

    lines = tally([a for a in answers if a.temperature == 0])

    assert lines == [
        "plain T=0: 5/5 identical; 10 passes judged 30 drafts, 25 accepted",
        "right T=0: 5/5 identical; 10 passes judged 30 drafts, 25 accepted",
        "wrong T=0: 4/5 identical; 10 passes judged 30 drafts, 25 accepted",
        "wrong T=0 3: ' a' became ' b' at 3; plain's gap 0.1250 = 1.00 steps of 0.125,"
        " edge's gap 0.0000 = 0.00 steps of 0.125",
    ]
