"""The drafts that come from tokens read ahead of the chain."""

from __future__ import annotations

import numpy as np

from picospec.edge_agent.draft_model.llama_drafter import CHUNK_TOKENS, LlamaDrafter
from tests.edge_agent.fake_cache import FakeCache, V, draft_after, drafts_after, truth


async def test_reading_ahead_drafts_what_step_by_step_would_and_no_further(
    drafter: LlamaDrafter,
) -> None:
    slot = drafter.take([1, 2, 3])
    chance = np.random.default_rng(2)
    context = [1, 2, 3]

    for _ in range(40):
        truths: list[int] = []
        while len(truths) < 6:
            truths.append(truth([*context, *truths]))
        right = int(chance.integers(0, 4))
        wrong = [(token + 1) % V for token in truths[right : right + int(chance.integers(3))]]
        ahead = [*truths[:right], *wrong]

        tokens = await drafts_after(slot, context, ahead)

        assert tokens == truths[: right + 1]
        context = [*context, *tokens]


async def test_what_was_read_ahead_and_drafted_is_not_read_again(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    slot = drafter.take([1, 2, 3])
    first = truth([1, 2, 3])
    second = truth([1, 2, 3, first])

    assert await drafts_after(slot, [1, 2, 3], [first, V - 1, 0]) == [first, second]
    await draft_after(slot, [1, 2, 3, first, second])

    assert second != V - 1
    assert [len(segment.tokens) for (segment,) in cache.passes] == [6, 1]


async def test_ahead_is_read_as_far_as_there_is_room(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    prompt = [i % V for i in range(CHUNK_TOKENS - 2)]
    slot = drafter.take(prompt)
    first = truth(prompt)
    second = truth([*prompt, first])
    full = [*prompt * 5][:298]

    in_chunk = await drafts_after(slot, prompt, [first, second, 5, 6])
    assert in_chunk == [first, second, truth([*prompt, first, second])]
    assert len(cache.passes[-1][0].tokens) == CHUNK_TOKENS

    assert (await drafts_after(slot, full, [truth(full), 2, 3]))[0] == truth(full)
    assert cache.held == 300  # its context_tokens
    assert await drafts_after(slot, [*full, 1, 2], [3]) == [truth([*full, 1, 2])]
