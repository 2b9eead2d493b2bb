"""Before an arm is measured, both of its ends have read the prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import httpx

from picospec.bench.run.client import Client, Question
from picospec.bench.run.live_arms import LiveArm

QUESTION = Question("why?", 0.0, 7, 64)


class ChunkedArm:
    """An edge whose draft model generates its first token at the n-th request."""

    def __init__(self, askings: int) -> None:
        self.asked: list[int] = []
        self._askings = askings

    async def ask(self, question: Question) -> None:
        self.asked.append(question.tokens)

    async def get(self, path: str) -> SimpleNamespace:
        stale = float(len(self.asked) >= self._askings)
        return SimpleNamespace(text=f"picospec:edge_stale_steps_total {stale}\n")


async def test_an_edge_is_asked_until_its_draft_model_has_taken_part() -> None:
    arm = ChunkedArm(askings=3)
    live = LiveArm(cast(Client, arm), None, cast(httpx.AsyncClient, arm), None)

    await live.ask(QUESTION)

    assert arm.asked == [2, 2, 2, 64]


async def test_an_arm_without_an_edge_is_asked_once() -> None:
    arm = ChunkedArm(askings=9)
    live = LiveArm(cast(Client, arm), None, None, None)

    await live.ask(QUESTION)

    assert arm.asked == [1, 64]
