"""The drafter over llama.cpp's own cache, and over the tokens of real tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.slot import FIRST_TOKENS, PRIOR_TOKENS_PER_S, WHOLE
from gateway.endpoints.messages_schema import ChatMessage
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.prefix import common_prefix
from local_models.store import open_store
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import tokenizer_file
from speculation import coupled
from speculation import separate as separate
from speculation.draft_token import DraftToken
from speculation.messages import Sampling
from tests.edge_agent.drafting_promises import (  # noqa: F401
    plainly,
    test_a_real_model_drafts_its_argmax_after_any_detour,
)
from tests.edge_agent.fake_cache import FakeCache, draft_after, rest_is_read, taken
from tests.local_models.chats import TEMPLATES, TOOLS, Json, result, user

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    store = open_store(os.environ)
    store.pull("smollm2", lambda what, done, total: None)
    model = Model(store.find("smollm2", "draft").path)
    yield model
    model.close()


async def test_a_real_model_reads_ahead_and_drafts_what_it_would_step_by_step(
    smollm: Model,
) -> None:
    prompt = smollm.tokenize("One, two, three, four, five,", False)
    expected = plainly(smollm, prompt, 6)
    drafter = LlamaDrafter(Context(smollm, 256, KvCache(2)))
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
    before, behind = (", ".join(map(str, some)) for some in (range(22), range(24, 60)))
    text = f"{before}. My name is Beatrice. {behind}. My name is"
    prompt = smollm.tokenize(text, False)
    expected = smollm.tokenize(" Beatrice", False)
    drafter = LlamaDrafter(Context(smollm, 1024, KvCache(2)))
    sampler = coupled.sampler(Sampling(temperature=0.0), 1, len(prompt))
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
# template writes it again. Where that makes other tokens, the KV is reused up to the first.


ASKED = user("Weather in Köln?")
SAME = (
    '{"city": "Köln", "unit": "°C", "days": 2}',
    '{"terms": [1, 2.5, -3], "exact": true, "none": null}',
    '{"deep": {"a": [{"b": "ü \\" \\\\ \\n"}]}, "empty": {}}',
    "{}",
)
OTHER = {
    '{"city":"Köln"}': '{"city":',
    '{"city": "K\\u00f6ln"}': '{"city": "K',
    '{"days": 1e3}': '{"days": 1',
    '{"city": "a",\n "days": 2}': '{"city": "a",',
}
"""JSON that is written again in another way, and how much of it stays the same text."""


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5-coder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    path = open_store(os.environ).find(request.param, "target").path
    template = (TEMPLATES / "qwen2.5.jinja").read_text("utf-8")
    return tokenizer_file(path, template).open()


@pytest.fixture
def cache() -> FakeCache:
    cache = FakeCache(slots=1)
    cache.limits = replace(cache.limits, vocabulary_size=1 << 20, context_tokens=4096)
    return cache


@pytest.fixture
def drafter(cache: FakeCache) -> Iterator[LlamaDrafter]:
    drafter = LlamaDrafter(cache)
    drafter._reading.tokens_per_s = 1e6  # it reads every prompt whole
    yield drafter
    drafter.close()


def turns(tokenizer: Tokenizer, arguments: str, before: str = "") -> tuple[list[int], ...]:
    """Return the first prompt, what the model generated after it, and the second prompt."""
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    answer: Json = {"role": "assistant", "content": before or None, "tool_calls": [call]}
    chat = [ChatMessage(**each).shown() for each in (ASKED, answer, result(1, "12 °C"))]
    body = f'{{"name": "weather", "arguments": {arguments}}}'
    text = f"{before}{before and chr(10)}<tool_call>\n{body}\n</tool_call><|im_end|>"
    return (
        tokenizer.chat(chat[:1], tools=TOOLS),
        tokenizer.encode(text, begin=False),
        tokenizer.chat(chat, tools=TOOLS),
    )


@pytest.mark.parametrize("before", ["", "I look."])
@pytest.mark.parametrize("arguments", SAME)
async def test_a_turn_reads_only_what_follows_the_calls_before_it(
    tokenizer: Tokenizer, drafter: LlamaDrafter, cache: FakeCache, arguments: str, before: str
) -> None:
    first, generated, second = turns(tokenizer, arguments, before)
    held = [*first, *generated]
    slot = taken(drafter, first)
    await draft_after(slot, held)
    slot.leave()
    rows = cache.rows

    await draft_after(drafter.take(second), second)

    assert cache.rows - rows == len(second) - len(held)


@pytest.mark.parametrize(("arguments", "same"), OTHER.items())
def test_json_that_is_written_in_another_way_is_reused_up_to_there(
    tokenizer: Tokenizer, arguments: str, same: str
) -> None:
    first, generated, second = turns(tokenizer, arguments)

    cached_tokens = common_prefix([*first, *generated], second) - len(first)

    text = b"".join(map(tokenizer.piece, generated[:cached_tokens])).decode("utf-8", "ignore")
    assert f'<tool_call>\n{{"name": "weather", "arguments": {same}'.startswith(text)
    assert text.endswith('"arguments": ') or '"arguments": {' in text
    assert 0 < cached_tokens < len(generated)
