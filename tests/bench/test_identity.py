"""Every prompt is asked of everyone, as many at once as wanted, and each difference counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bench.divergence import RESOLUTION, Divergence, TokenScores, divergence
from bench.identity import Answer, batched, compare, is_defect, tally
from bench.prompts import Prompt
from bench.run.client import Reply

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


async def test_everyone_is_asked_everything_so_many_at_once_and_compared_with_plain() -> None:
    services = Services()

    answers = await compared_answers(services, sessions=2)

    asked = {(a.arm, a.prompt, a.temperature) for a in answers}
    assert len(answers) == len(asked) == 3 * 5 * 2
    assert services.most == 2
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


# Where answers part, and by how little: worked by hand.


def row(token: bytes, **logprobs: float) -> TokenScores:
    """A token and the likeliest there; "end" stands for the special token that has no piece."""
    pairs = ((name.replace("end", "").encode(), value) for name, value in logprobs.items())
    top = sorted(pairs, key=lambda pair: -pair[1])
    return TokenScores(token, dict(top)[token], tuple(top))


A, Z = row(b"a", a=-0.5), row(b"z", z=-0.5)
B, C = row(b"b", b=-0.5, c=-0.875, d=-1.0), row(b"c", b=-0.875, c=-0.5)
NEAR_B, NEAR_C = row(b"b", b=-0.75, c=-0.875, d=-1.25), row(b"c", b=-0.75, c=-0.75, d=-1.25)
LONGER = row(b"b", b=-0.5, end=-0.75)


@pytest.mark.parametrize(
    ("plain", "edge", "found", "near_tie"),
    [
        ([A, NEAR_B], [A, NEAR_C], Divergence(1, "b", "c", 0.125, 0.0, 0.125), True),
        ([B], [C], Divergence(0, "b", "c", 0.375, 0.375, 0.125), False),
        ([B], [Z], Divergence(0, "b", "z", None, None, 0.125), False),
        ([A], [A, LONGER], Divergence(1, "", "b", None, 0.25, 0.25), True),
    ],
    ids=["a near-tie", "more than a step in each logit", "not among the likeliest", "an end"],
)
def test_a_parting_tells_both_gaps_in_steps_of_the_best_logits(
    plain: list[TokenScores], edge: list[TokenScores], found: Divergence, near_tie: bool
) -> None:
    parting = divergence(plain, edge, lambda *_: 0.0)

    assert parting == found
    assert found.near_tie is near_tie
    assert divergence(plain, list(plain), lambda *_: 0.0) is None


def test_the_noise_of_both_tokens_counts() -> None:
    plain, edge = [row(b"b", b=-2.0, c=-0.5)], [row(b"c", b=-2.0, c=-0.5)]

    found = divergence(plain, edge, lambda position, piece: {b"b": 1.75, b"c": 0.0}[piece])

    assert found is not None
    assert (found.plain_gap, found.edge_gap) == pytest.approx((0.25, -0.25))


def test_logits_of_float32_lie_on_no_grid() -> None:
    assert row(b"a", a=-0.123456, b=-0.987654, c=-2.345678).step == RESOLUTION
