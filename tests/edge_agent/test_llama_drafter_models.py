"""The drafter over llama.cpp's own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest

from picospec.edge_agent.draft_model.llama_drafter import LlamaDrafter
from picospec.edge_agent.draft_model.llama_slot import FIRST_TOKENS, PRIOR_TOKENS_A_S, WHOLE
from picospec.models.llama_cpp.model import Context, Model
from picospec.models.llama_cpp.segments import Segment
from picospec.models.store import open_store
from picospec.speculation.judges import coupled
from picospec.speculation.judges.separate import edge as separate
from picospec.speculation.protocol.messages import Sampling
from picospec.speculation.sampling.draft_token import DraftToken
from tests.edge_agent.fake_cache import rest_is_read, taken

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    store = open_store(os.environ)
    store.pull("smollm2", lambda what, done, total: None)
    model = Model(store.find("smollm2", "draft").path)
    yield model
    model.close()


@pytest.mark.parametrize("judge", ["coupled", "separate"])
async def test_a_real_model_drafts_its_argmax_after_any_detour(
    smollm: Model, judge: str
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, sequences=2))
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
    await draft([*prompt, 100, 200, 300], 3)
    again = await draft(prompt, 6)
    drafter.close()

    assert [each.token for each in straight] == expected
    assert [each.token for each in again] == expected
    assert all(0.0 < each.confidence <= 1.0 for each in straight)


async def test_a_real_model_reads_ahead_and_drafts_what_it_would_step_by_step(
    smollm: Model,
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, sequences=2))
    sampler = coupled.sampler(Sampling(temperature=0.0), 1, len(prompt))
    slot = taken(drafter, prompt)

    right = await slot.step(prompt, lambda _: sampler, ahead=expected[:3])
    wrong = await slot.step(
        [*prompt, *expected[:4]], lambda _: sampler, ahead=[expected[4], 100, 200]
    )
    drafter.close()

    assert [each.token for each in (*right, *wrong)] == expected


async def test_a_real_model_drafts_from_all_of_a_prompt_once_it_has_read_the_rest(
    smollm: Model,
) -> None:
    numbers = ", ".join(map(str, range(60)))
    prompt = smollm.tokenize(f"{numbers}. The word is", False)
    expected = plainly(smollm, prompt, 3)
    drafter = LlamaDrafter(Context(smollm, 1024, sequences=2))
    sampler = coupled.sampler(Sampling(temperature=0.0), 1, len(prompt))
    slot, drafts = taken(drafter, prompt), list[DraftToken]()
    assert len(prompt) > FIRST_TOKENS + PRIOR_TOKENS_A_S

    await slot.step(prompt, lambda _: sampler)
    await rest_is_read(slot, 50.0)
    assert slot.slot.view == WHOLE
    for _ in expected:
        context = [*prompt, *(draft.token for draft in drafts)]
        drafts += await slot.step(context, lambda _: sampler)
    drafter.close()

    assert [each.token for each in drafts] == expected


def plainly(model: Model, prompt: list[int], count: int) -> list[int]:
    """Decode token by token, without a drafter."""
    context, tokens, rows = Context(model, 256), list[int](), list(prompt)
    for _ in range(count):
        context.decode([Segment(0, context.length(0), rows, 1)])
        rows = [int(np.argmax(context.logits(0)))]
        tokens += rows
    context.close()
    return tokens
