"""How many engine steps an answer takes, on an engine that no other test taught latencies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE, started
from tests.verifier.vllm_target.scripted import (
    GREEDY,
    PROMPTS,
    Answer,
    Script,
    drafted,
    opening,
    plain,
)

pytestmark = ON_ENGINE


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target(directory: Path) -> AsyncIterator[VllmTarget]:
    async with started(directory) as served:
        yield served


@pytest.mark.parametrize(("wrong", "most"), [(0.0, 20), (0.15, 35)])
async def test_good_drafts_save_engine_steps(
    target: VllmTarget, wrong: float, most: int
) -> None:
    request = opening(target, PROMPTS[1], GREEDY, max_tokens=128)
    expected, plain_steps = await counted(target, plain(target, f"steps {wrong}", request))

    waiting = replace(request, fill="never")  # counts passes, not this machine's speed
    running = drafted(target, f"few {wrong}", waiting, expected.tokens, Script(wrong=wrong))
    answer, steps = await counted(target, running)

    assert answer.tokens == expected.tokens
    assert plain_steps == 128
    assert steps <= most


async def test_useless_drafts_cost_no_steps(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[1], GREEDY)
    expected = await plain(target, "useless plain", request)

    running = drafted(target, "useless", request, expected.tokens, Script(wrong=1.0))
    answer, steps = await counted(target, running)

    assert answer.tokens == expected.tokens
    assert steps <= 64


async def counted(target: VllmTarget, running: Awaitable[Answer]) -> tuple[Answer, int]:
    before = (await target.figures())["steps"]
    answer = await running
    return answer, (await target.figures())["steps"] - before
