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
        text = f"picospec:edge_stale_steps_total {stale}\n"
        return SimpleNamespace(text=text, status_code=200)


async def test_an_edge_is_asked_until_its_draft_model_has_taken_part() -> None:
    arm = ChunkedArm(askings=3)
    live = LiveArm(cast(Client, arm), cast(httpx.AsyncClient, arm), None)

    await live.ask(QUESTION)

    assert arm.asked == [2, 2, 2, 64]


async def test_a_cold_question_is_asked_once_and_what_the_target_read_is_counted() -> None:
    scraped = iter([(5, 0, 0), (5, 1470, 1024)])

    async def metrics(path: str) -> SimpleNamespace:
        llamas, prompts, hits = next(scraped)
        text = f"""# HELP vllm:prompt_tokens_total Prompts.
picospec:prefilled_tokens_total {llamas}.0
vllm:prompt_tokens_total{{engine="0",model_name="a b"}} {prompts}
vllm:prompt_tokens_cached_total{{engine="0"}} {hits / 2}
vllm:prompt_tokens_cached_total{{engine="1"}} {hits / 2}
"""
        return SimpleNamespace(text=text, status_code=200)

    arm = ChunkedArm(askings=3)
    verifier = cast(httpx.AsyncClient, SimpleNamespace(get=metrics))
    live = LiveArm(cast(Client, arm), cast(httpx.AsyncClient, arm), None, verifier)

    _, costs = await live.ask(QUESTION, cold=True)

    assert arm.asked == [64]
    assert costs["read_tokens"] == 1470 - 1024


async def test_an_arm_without_an_edge_is_asked_once() -> None:
    arm = ChunkedArm(askings=9)
    live = LiveArm(cast(Client, arm), None, None)

    await live.ask(QUESTION)

    assert arm.asked == [1, 64]
