"""The drafter over llama.cpp's own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from edge_agent.draft_model.llama_drafter import LlamaDrafter
from models.llama import Context, Model
from models.segments import Segment
from models.store import open_store
from speculation.protocol.messages import Sampling
from speculation.sampling import draft_sampler as guessing
from speculation.sampling.draft_token import DraftToken


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    store = open_store(os.environ)
    store.pull("smollm2", lambda what, done, total: None)
    model = Model(store.path("smollm2-135m-q4_0"))
    yield model
    model.close()


@pytest.mark.models
@pytest.mark.parametrize("judge", ["coupled", "separate"])
async def test_a_real_model_drafts_its_argmax_after_any_detour(
    smollm: Model, judge: str
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, sequences=2))
    sampling = Sampling(temperature=0.0)
    pick = guessing.coupled(sampling, 1, len(prompt))
    if judge == "separate":
        pick = guessing.separate(sampling, lambda: 0.5)

    async def draft(context: list[int], count: int) -> list[DraftToken]:
        seat = drafter.take(prompt)
        assert seat is not None
        guesses: list[DraftToken] = []
        for _ in range(count):
            drafted = [*context, *(guess.token for guess in guesses)]
            guesses += await seat.step(drafted, pick)
            await seat.step([*drafted, 100, 200], pick)
        seat.leave()
        return guesses

    straight = await draft(prompt, 6)
    await draft([*prompt, 100, 200, 300], 3)
    again = await draft(prompt, 6)
    drafter.close()

    assert [guess.token for guess in straight] == expected
    assert [guess.token for guess in again] == expected
    assert all(0.0 < guess.confidence <= 1.0 for guess in straight)


async def test_a_real_model_reads_ahead_and_says_what_it_would_step_by_step(
    smollm: Model,
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, sequences=2))
    pick = guessing.coupled(Sampling(temperature=0.0), 1, len(prompt))
    seat = drafter.take(prompt)
    assert seat is not None

    right = await seat.step(prompt, pick, ahead=expected[:3])
    wrong = await seat.step([*prompt, *expected[:4]], pick, ahead=[expected[4], 100, 200])
    drafter.close()

    assert [guess.token for guess in (*right, *wrong)] == expected


def plainly(model: Model, prompt: list[int], count: int) -> list[int]:
    """Decode token by token, without a drafter."""
    context, said, rows = Context(model, 256), list[int](), list(prompt)
    for _ in range(count):
        context.decode([Segment(0, context.length(0), rows, 1)])
        rows = [int(np.argmax(context.logits(0)))]
        said += rows
    context.close()
    return said
