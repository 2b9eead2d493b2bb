"""What the core counts for the metrics."""

from __future__ import annotations

from contextlib import aclosing

from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import DRAWN, PROMPTS, gone, opening

pytestmark = ON_ENGINE


async def test_kv_use_is_that_of_the_sessions_that_run(target: VllmTarget) -> None:
    replies = target.serve("kv", opening(target, PROMPTS[0], DRAWN, max_tokens=100))
    async with aclosing(replies):
        await anext(replies)
        running = await target.figures()
    await gone(target)
    idle = await target.figures()

    assert 0.0 < running["kv_usage"] <= 1.0
    assert (idle["kv_usage"], idle["waiting"]) == (0.0, 0)
