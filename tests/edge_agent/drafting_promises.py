"""What a drafter promises on each model, for test files that give the models."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest

from edge_agent.draft.llama import LlamaDrafter
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from speculation import coupled
from speculation import separate as separate
from speculation.draft_token import DraftToken
from speculation.messages import Sampling
from tests.edge_agent.fake_cache import taken


@pytest.mark.parametrize("judge", ["coupled", "separate"])
async def test_a_real_model_drafts_its_argmax_after_any_detour(
    smollm: Model, judge: str
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, KvCache(2)))
    sampling = Sampling(temperature=0.0)
    sampler = coupled.sampler(sampling, 1, len(prompt))
    if judge == "separate":
        sampler = separate.sampler(sampling, repeat(0.5))

    async def draft(context: list[int], count: int) -> list[DraftToken]:
        slot, drafts = taken(drafter, prompt), list[DraftToken]()
        for _ in range(count):
            drafted = [*context, *(draft.token for draft in drafts)]
            drafts += await slot.step(drafted, lambda _: sampler)
            await slot.step([*drafted, 100, 200], lambda _: sampler)
        slot.leave()
        return drafts

    straight = await draft(prompt, 6)
    await draft([*prompt, 100, 200, 30], 3)
    again = await draft(prompt, 6)
    drafter.close()

    assert [each.token for each in straight] == expected
    assert [each.token for each in again] == expected
    assert all(0.0 < each.confidence <= 1.0 for each in straight)


def plainly(model: Model, prompt: list[int], count: int) -> list[int]:
    """Decode token by token, without a drafter."""
    context, tokens, rows = Context(model, 256), list[int](), list(prompt)
    for _ in range(count):
        context.decode([Segment(0, context.length(0), rows, 1)])
        rows = [int(np.argmax(context.logits(0)))]
        tokens += rows
    context.close()
    return tokens
