"""The drafter over llama.cpp's own cache, and over the tokens of real tokenizers.

On models with recurrent layers it goes back by checkpoints, and reads on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest

from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.loading import open_context
from edge_agent.draft.slot import FIRST_TOKENS, PRIOR_TOKENS_PER_S, WHOLE
from edge_agent.settings import EdgeSettings
from gateway.endpoints.messages_schema import ChatMessage
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import CHECKPOINT_TOKENS, Context, Model
from local_models.llama_cpp.segments import Segment
from local_models.store import open_store
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import tokenizer_file
from speculation import coupled, separate
from speculation.draft_token import DraftSampler, DraftToken
from speculation.messages import Sampling
from tests.edge_agent.fake_cache import rest_is_read, taken
from tests.local_models.chats import TEMPLATES, TOOLS, Json, result, user
from tests.local_models.llama_cpp.hybrids import ARCHITECTURES, write

GREEDY = Sampling(temperature=0.0)
COUNTING = "One, two, three, four, five,"


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    store = open_store(os.environ)
    store.pull("smollm2", lambda what, done, total: None)
    model = Model(store.find("smollm2", "draft").path)
    yield model
    model.close()


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def recurrent(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """A small model with recurrent layers."""
    model = Model(write(request.param, tmp_path_factory.mktemp("hybrid") / "model.gguf"))
    yield model
    model.close()


def plainly(model: Model, prompt: list[int], count: int) -> list[int]:
    """Decode token by token, without a drafter."""
    context, tokens, rows = Context(model, 256), list[int](), list(prompt)
    for _ in range(count):
        context.decode([Segment(0, context.length(0), rows, 1)])
        rows = [int(np.argmax(context.logits(0)))]
        tokens += rows
    context.close()
    return tokens


@pytest.mark.models
@pytest.mark.parametrize("judge", ["coupled", "separate"])
async def test_a_real_model_drafts_its_argmax_after_any_detour(
    smollm: Model, judge: str
) -> None:
    await drafts_its_argmax(smollm, judge)


@pytest.mark.parametrize("judge", ["coupled", "separate"])
async def test_so_does_a_model_with_recurrent_layers(recurrent: Model, judge: str) -> None:
    await drafts_its_argmax(recurrent, judge)


async def drafts_its_argmax(model: Model, judge: str) -> None:
    prompt = model.tokenize(COUNTING, False)
    expected = plainly(model, prompt, 6)
    drafter = LlamaDrafter(open_context(model, EdgeSettings(), 256, 2))
    sampler: DraftSampler = coupled.sampler(GREEDY, 1, len(prompt))
    if judge == "separate":
        sampler = separate.sampler(GREEDY, repeat(0.5))

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


def test_an_edge_goes_back_by_few_tokens_too_many(recurrent: Model) -> None:
    context = open_context(recurrent, EdgeSettings(), 256)
    for position in range(40):
        context.decode([Segment(0, position, [position])])

    assert 40 - 32 - CHECKPOINT_TOKENS < context.truncate(0, 40 - 32) <= 40 - 32
    context.close()


@pytest.mark.models
async def test_a_real_model_reads_ahead_and_drafts_what_it_would_step_by_step(
    smollm: Model,
) -> None:
    prompt = smollm.tokenize(COUNTING, False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, KvCache(2)))
    sampler = coupled.sampler(GREEDY, 1, len(prompt))
    slot = taken(drafter, prompt)

    right = await slot.step(prompt, lambda _: sampler, ahead=expected[:3])
    wrong = await slot.step(
        [*prompt, *expected[:4]], lambda _: sampler, ahead=[expected[4], 100, 200]
    )
    drafter.close()

    assert [each.token for each in (*right, *wrong)] == expected


@pytest.mark.models
async def test_a_real_model_drafts_from_all_of_a_prompt_once_it_has_read_the_rest(
    smollm: Model,
) -> None:
    before, behind = (", ".join(map(str, some)) for some in (range(22), range(24, 60)))
    text = f"{before}. My name is Beatrice. {behind}. My name is"
    prompt = smollm.tokenize(text, False)
    expected = smollm.tokenize(" Beatrice", False)
    drafter = LlamaDrafter(Context(smollm, 1024, KvCache(2)))
    sampler = coupled.sampler(GREEDY, 1, len(prompt))
    slot, drafts = taken(drafter, prompt), list[DraftToken]()
    assert len(prompt) > FIRST_TOKENS + PRIOR_TOKENS_PER_S

    (unknowing,) = await slot.step(prompt, lambda _: sampler)
    await rest_is_read(slot, 50.0)
    assert unknowing.token != expected[0]
    assert slot.slot.view == WHOLE
    for _ in expected:
        context = [*prompt, *(draft.token for draft in drafts)]
        drafts += await slot.step(context, lambda _: sampler)
    drafter.close()

    assert [each.token for each in drafts] == expected


# --- turns of a conversation with tools: only what is new of each is read
#
# What a model generated comes back as JSON that the client parsed or kept, and the chat
# template writes it again, in the same tokens.


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5-coder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    path = open_store(os.environ).find(request.param, "target").path
    template = (TEMPLATES / "qwen2.5.jinja").read_text("utf-8")
    return tokenizer_file(path, template).open()


@pytest.mark.models
@pytest.mark.parametrize("before", ["", "I look."])
@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": "Köln", "unit": "°C", "days": 2}',
        '{"terms": [1, 2.5, -3], "exact": true, "none": null}',
        '{"deep": {"a": [{"b": "ü \\" \\\\ \\n"}]}, "empty": {}}',
        "{}",
    ],
)
def test_a_turn_begins_with_the_tokens_of_the_calls_before_it(
    tokenizer: Tokenizer, arguments: str, before: str
) -> None:
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    answer: Json = {"role": "assistant", "content": before or None, "tool_calls": [call]}
    turns = (user("Weather in Köln?"), answer, result(1, "12 °C"))
    chat = [ChatMessage(**each).shown() for each in turns]
    body = f'{{"name": "weather", "arguments": {arguments}}}'
    text = f"{before}{before and chr(10)}<tool_call>\n{body}\n</tool_call><|im_end|>"

    first = tokenizer.chat(chat[:1], tools=TOOLS)
    held = [*first, *tokenizer.encode(text, begin=False)]
    second = tokenizer.chat(chat, tools=TOOLS)

    assert second[: len(held)] == held
