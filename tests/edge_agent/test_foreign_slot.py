"""A draft model of another vocabulary: what it writes becomes the target's tokens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picospec.edge_agent.draft import foreign as foreign_slot
from picospec.edge_agent.draft.foreign import ForeignSlot
from picospec.edge_agent.draft.llama import LlamaDrafter
from picospec.edge_agent.draft.retokeniser import Retokeniser
from picospec.speculation import coupled
from picospec.speculation.distributions import DraftSampler, DraftToken
from picospec.speculation.messages import Sampling
from tests.edge_agent.foreign import PAIRS, TEXTS, Name, Typist, translation

pytestmark = pytest.mark.models

PROMPT = "<|im_start|>user\nWrite.<|im_end|>\n<|im_start|>assistant\n"


def greedy(_: Sequence[int]) -> DraftSampler:
    return coupled.sampler(Sampling(temperature=0.0), 0, 1)


class Pair:
    """A slot over a draft model that writes `text`, and the target's tokens of it."""

    def __init__(self, target: Name, draft: Name, text: str) -> None:
        self.translation = translation(target, draft)
        self.prompt = self.translation.target.tokenise(PROMPT.encode())
        own = self.translation.prompt(self.prompt)
        self.typist = Typist(self.translation, own, text.encode())
        self.drafter = LlamaDrafter(self.typist)
        self.expected = self.translation.target.tokenise(text.encode())

    def __enter__(self) -> Pair:
        slot = foreign_slot.take(self.drafter, self.translation, self.prompt)
        assert slot is not None
        self.slot: ForeignSlot = slot
        return self

    def __exit__(self, *_: object) -> None:
        self.slot.leave()
        self.drafter.close()

    @property
    def is_spelt(self) -> bool:
        """Whether both vocabularies have tokens for all of the text."""
        text = self.typist.text
        decoded = (self.translation.target, self.translation.draft)
        return all(each.bytes_of(each.tokenise(text)) == text for each in decoded)

    async def step(self, output: Sequence[int], ahead: Sequence[int] = ()) -> list[DraftToken]:
        async with asyncio.timeout(20):
            return await self.slot.step([*self.prompt, *output], greedy, ahead=ahead)

    @property
    def stops(self) -> frozenset[int]:
        return self.translation.target.vocabulary.stop_tokens


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is certain is proposed, and the draft model may write what is improbable."""
    monkeypatch.setattr(Retokeniser, "can_continue", lambda *_: True)
    monkeypatch.setattr(foreign_slot, "_WORD", re.compile(rb"(?!)"))
    monkeypatch.setattr(foreign_slot, "MAX_PENDING", 1 << 30)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("target", "draft"), PAIRS)
async def test_drafts_are_the_targets_tokens_of_the_text_however_the_draft_model_splits_it(
    target: Name, draft: Name
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(text=TEXTS, ahead=st.integers(0, 5), seed=st.integers(0, 99))
    @example(text="def f(x):\n    return x\n\n\nprint(f(2))\n", ahead=0, seed=0)
    @example(text=" 🙂 中文 Pseudonymous", ahead=3, seed=1)
    def check(text: str, ahead: int, seed: int) -> None:
        asyncio.run(generated(Pair(target, draft, text), ahead, Random(seed)))

    await asyncio.to_thread(check)


async def generated(pair: Pair, ahead: int, random: Random) -> None:
    """Accept all drafts, with tokens of the target's own between them."""
    if not pair.is_spelt:
        return
    with pair:
        output: list[int] = []
        while len(output) < len(pair.expected):
            at = len(output)
            drafts = await pair.step(output, pair.expected[at : at + ahead])
            tokens = [each.token for each in drafts]
            if tokens and tokens[-1] in pair.stops:
                assert tokens[:-1] == pair.expected[at:]
                return
            assert tokens == pair.expected[at : at + len(tokens)]
            output += tokens[: random.randint(0, len(tokens))]
            if random.random() < 0.3:
                output += pair.expected[len(output) :][:1]


@pytest.mark.parametrize(("target", "draft"), PAIRS)
async def test_the_end_of_the_text_is_the_targets_stop_token(target: Name, draft: Name) -> None:
    with Pair(target, draft, "Yes") as pair:
        output: list[int] = []
        while not (pair.stops & set(output)):
            output += [each.token for each in await pair.step(output)]

    assert output == [*pair.expected, pair.translation.target.vocabulary.eos]


@pytest.mark.usefixtures("patient")
async def test_text_that_is_not_proposed_yet_is_text_before_the_next_draw() -> None:
    outputs = list[list[int]]()

    def recorded(output: Sequence[int]) -> DraftSampler:
        outputs.append(list(output))
        return greedy(output)

    with Pair("smollm2", "qwen", " quick brown fox") as pair:
        pair.typist.longest = True
        for _ in range(2):
            await pair.slot.step(pair.prompt, recorded)

    assert outputs == [[], pair.expected[:1]]


async def test_a_word_of_one_token_is_proposed_at_once() -> None:
    with Pair("smollm2", "qwen", " quick brown fox") as pair:
        pair.typist.longest = True

        drafts = await pair.step([])

        assert [each.token for each in drafts] == pair.expected[:1]


async def test_text_without_a_certain_boundary_is_proposed_in_the_end() -> None:
    with Pair("qwen", "smollm2", "a" * 200) as pair:
        steps = [await pair.step([]) for _ in range(foreign_slot.MAX_PENDING)]

    assert any(steps)


async def test_what_is_read_ahead_costs_one_pass() -> None:
    with Pair("smollm2", "qwen", "one, two, three, four, five") as pair:
        pair.typist.longest = True

        drafts = await pair.step([], pair.expected[:7])

        assert [each.token for each in drafts] == pair.expected[: len(drafts)]
        assert len(drafts) >= 6
        assert pair.typist.passes == 1


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_a_chats_markers_become_the_draft_models_own(target: Name, draft: Name) -> None:
    found = translation(target, draft)
    markers = found.target.vocabulary.markers
    chat = [markers["<|im_start|>"], *found.target.tokenise(b"user\nhi"), markers["<|im_end|>"]]

    own = found.prompt(chat)

    theirs = found.draft.vocabulary.markers
    assert own[0] == theirs["<|im_start|>"]
    assert own[-1] == theirs["<|im_end|>"]
    assert found.draft.bytes_of(own) == b"<|im_start|>user\nhi<|im_end|>"
