"""What the drafter's thread says of tokens that it reads ahead of the chain."""

from __future__ import annotations

import numpy as np

from edge_agent.draft_model.llama_drafter import CHUNK_TOKENS, LlamaDrafter
from tests.edge_agent.fake_cache import FakeCache, V, guess_after, guesses_after, truth


async def test_reading_ahead_guesses_what_step_by_step_would_and_no_further(
    drafter: LlamaDrafter,
) -> None:
    seat = drafter.take([1, 2, 3])
    chance = np.random.default_rng(2)
    context = [1, 2, 3]

    for _ in range(40):
        said: list[int] = []
        while len(said) < 6:
            said.append(truth([*context, *said]))
        right = int(chance.integers(0, 4))
        wrong = [(token + 1) % V for token in said[right : right + int(chance.integers(3))]]
        ahead = [*said[:right], *wrong]

        tokens = await guesses_after(seat, context, ahead)

        assert tokens == said[: right + 1]
        context = [*context, *tokens]


async def test_what_was_read_ahead_and_guessed_is_not_read_again(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    seat = drafter.take([1, 2, 3])
    first = truth([1, 2, 3])
    second = truth([1, 2, 3, first])

    assert await guesses_after(seat, [1, 2, 3], [first, V - 1, 0]) == [first, second]
    await guess_after(seat, [1, 2, 3, first, second])

    assert second != V - 1
    assert [len(segment.tokens) for (segment,) in cache.passes] == [6, 1]


async def test_ahead_is_read_as_far_as_there_is_room(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    prompt = [i % V for i in range(CHUNK_TOKENS - 2)]
    seat = drafter.take(prompt)
    first = truth(prompt)
    second = truth([*prompt, first])
    full = [*prompt * 5][:298]

    in_chunk = await guesses_after(seat, prompt, [first, second, 5, 6])
    assert in_chunk == [first, second, truth([*prompt, first, second])]
    assert len(cache.passes[-1][0].tokens) == CHUNK_TOKENS

    assert (await guesses_after(seat, full, [truth(full), 2, 3]))[0] == truth(full)
    assert cache.held == 300  # its context_tokens
    assert await guesses_after(seat, [*full, 1, 2], [3]) == [truth([*full, 1, 2])]
