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


# Where answers part, and by how little: worked by hand.


def quiet(position: int, piece: bytes) -> float:
    return 0.0


def row(token: bytes, **logprobs: float) -> TokenScores:
    """A token and the likeliest there."""
    top = sorted(((k.encode(), v) for k, v in logprobs.items()), key=lambda pair: -pair[1])
    return TokenScores(token, dict(top)[token], tuple(top))


def test_equal_answers_part_nowhere() -> None:
    answer = [row(b"a", a=-0.5), row(b"b", b=-0.25)]

    assert divergence(answer, list(answer), quiet) is None


def test_a_parting_tells_both_gaps_in_steps_of_the_best_logits() -> None:
    plain = [row(b"a", a=-0.5), row(b"b", b=-0.75, c=-0.875, d=-1.25)]
    edge = [row(b"a", a=-0.5), row(b"c", b=-0.75, c=-0.75, d=-1.25)]

    found = divergence(plain, edge, quiet)

    assert found == Divergence(1, "b", "c", plain_gap=0.125, edge_gap=0.0, step=0.125)
    assert found.near_tie


def test_the_noise_of_both_tokens_counts() -> None:
    plain, edge = [row(b"b", b=-2.0, c=-0.5)], [row(b"c", b=-2.0, c=-0.5)]

    found = divergence(plain, edge, lambda position, piece: {b"b": 1.75, b"c": 0.0}[piece])

    assert found is not None
    assert found.plain_gap == pytest.approx(0.25)
    assert found.edge_gap == pytest.approx(-0.25)


def test_a_token_that_was_not_among_the_likeliest_has_no_gap() -> None:
    found = divergence([row(b"b", b=-0.5)], [row(b"z", z=-0.5)], quiet)

    assert found is not None
    assert found.plain_gap is None
    assert not found.near_tie


def test_an_answer_that_ends_sooner_parts_where_it_ends() -> None:
    longer = [row(b"a", a=-0.5), TokenScores(b"b", -0.5, ((b"b", -0.5), (b"", -0.75)))]

    found = divergence(longer[:1], longer, quiet)

    assert found == Divergence(1, "", "b", plain_gap=None, edge_gap=0.25, step=0.25)


def test_logits_of_float32_lie_on_no_grid() -> None:
    assert row(b"a", a=-0.123456, b=-0.987654, c=-2.345678).step == RESOLUTION


def test_a_gap_of_more_than_a_step_in_each_logit_is_no_near_tie() -> None:
    plain, edge = [row(b"b", b=-0.5, c=-0.875, d=-1.0)], [row(b"c", b=-0.875, c=-0.5)]

    found = divergence(plain, edge, quiet)

    assert found is not None
    assert found.step == 0.125
    assert not found.near_tie
