"""The draft model reads of a conversation with tools only what is new in each turn.

What a model generated comes back as JSON that the client parsed or kept, and the chat template
writes it again. Where that makes other tokens, the KV is reused up to the first of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from picospec.edge_agent.draft_model.llama_drafter import LlamaDrafter
from picospec.gateway.schemas.messages import ChatMessage
from picospec.models.llama_cpp.kv_reuse import common_prefix
from picospec.models.store import open_store
from picospec.models.tokenizing.tokenizer import Tokenizer
from picospec.models.tokenizing.tokenizer_file import tokenizer_file
from tests.edge_agent.fake_cache import FakeCache, draft_after, taken
from tests.models.chats import TEMPLATES, TOOLS, Json, result, user

pytestmark = pytest.mark.models

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
    drafter._reading.tokens_a_s = 1e6  # it reads every prompt whole
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

    reused = common_prefix([*first, *generated], second) - len(first)

    text = b"".join(map(tokenizer.piece, generated[:reused])).decode("utf-8", "ignore")
    assert f'<tool_call>\n{{"name": "weather", "arguments": {same}'.startswith(text)
    assert text.endswith('"arguments": ') or '"arguments": {' in text
    assert 0 < reused < len(generated)
