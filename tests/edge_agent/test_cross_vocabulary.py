"""A draft model of another vocabulary: what it writes becomes the target's tokens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.draft import cross_vocabulary as cross_vocabulary_slot
from edge_agent.draft.cross_vocabulary import CrossVocabularySlot
from edge_agent.draft.cross_vocabulary_sampler import CrossVocabularySampler, Row
from edge_agent.draft.drafter import StepSampler, step_sampler
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.retokeniser import Retokeniser
from edge_agent.draft.token_mapping import Translation
from local_models.tokenizer import Tokenizer
from speculation import coupled
from speculation.distributions import Logits, distribution
from speculation.draft_token import DraftSampler, DraftToken
from speculation.messages import Open, Sampling
from speculation.model_facts import Limits, ModelFacts
from speculation.noise import noise_index
from tests.edge_agent.cross_vocabulary import (
    PAIRS,
    TEXTS,
    Name,
    Typist,
    WordEncoder,
    translation,
)
from tests.guards import GUARD_S

PROMPT = "<|im_start|>user\nWrite.<|im_end|>\n<|im_start|>assistant\n"


def greedy(_: Sequence[int]) -> DraftSampler:
    return coupled.sampler(Sampling(temperature=0.0), 0, 1)


class Pair:
    """A slot over a draft model that writes `text`, and the target's tokens of it."""

    def __init__(self, target: Name, draft: Name, text: str) -> None:
        self.translation = translation(target, draft)
        self.prompt = self.translation.target.tokenise(PROMPT.encode())
        self.own = self.translation.prompt(self.prompt)
        self.typist = Typist(self.translation, self.own, text.encode())
        self.drafter = LlamaDrafter(self.typist)
        self.expected = self.translation.target.tokenise(text.encode())

    def __enter__(self) -> Pair:
        slot = self.drafter.take(self.own)
        assert slot is not None
        self.slot = CrossVocabularySlot(slot, self.translation, len(self.prompt), self.own)
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
        async with asyncio.timeout(GUARD_S):
            return await self.slot.step([*self.prompt, *output], greedy, ahead=ahead)

    @property
    def stops(self) -> frozenset[int]:
        return self.translation.target.vocabulary.stop_tokens


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is certain is proposed, and the draft model may write what is improbable."""
    monkeypatch.setattr(Retokeniser, "can_continue", lambda *_: True)
    monkeypatch.setattr(cross_vocabulary_slot, "_WORD", re.compile(rb"(?!)"))
    monkeypatch.setattr(cross_vocabulary_slot, "MAX_PENDING", 1 << 30)
    monkeypatch.setattr(cross_vocabulary_slot, "UNSETTLED", 1)


@pytest.mark.models
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


@pytest.mark.models
@pytest.mark.parametrize(("target", "draft"), PAIRS)
async def test_the_end_of_the_text_is_the_targets_stop_token(target: Name, draft: Name) -> None:
    with Pair(target, draft, "Yes") as pair:
        output: list[int] = []
        while not (pair.stops & set(output)):
            output += [each.token for each in await pair.step(output)]

    assert output == [*pair.expected, pair.translation.target.vocabulary.eos]


@pytest.mark.models
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


@pytest.mark.models
async def test_a_word_of_one_token_is_proposed_at_once() -> None:
    with Pair("smollm2", "qwen", " quick brown fox") as pair:
        pair.typist.longest = True

        drafts = await pair.step([])

        assert [each.token for each in drafts] == pair.expected[:1]


@pytest.mark.models
async def test_text_without_a_certain_boundary_is_proposed_in_the_end() -> None:
    with Pair("qwen", "smollm2", "a" * 200) as pair:
        steps = [await pair.step([]) for _ in range(cross_vocabulary_slot.MAX_PENDING)]

    assert any(steps)


@pytest.mark.models
async def test_what_is_read_ahead_costs_one_pass() -> None:
    with Pair("smollm2", "qwen", "one, two, three, four, five") as pair:
        pair.typist.longest = True

        drafts = await pair.step([], pair.expected[:7])

        assert [each.token for each in drafts] == pair.expected[: len(drafts)]
        assert len(drafts) >= 6
        assert pair.typist.passes == 1


# How tokens are drawn of a draft model that has another vocabulary than the target.

TARGET = WordEncoder([b"a", b"b", b"c", b"d", b"ab", b"<end>", b"e"], special={5})
DRAFT = WordEncoder([b"<stop>", b"d", b"c", b"bd", b"b", b"a", b"cda", b"x"], special={0})
A, B, C, D, AB, END, E = range(7)
STOP_, D_, C_, BD_, B_, A_, CDA_, X_ = range(8)
"""Tokens of the target, and those of the draft model."""

CROSS_VOCABULARY_PROMPT = (A, B)


@pytest.fixture
def pair() -> Translation:
    return Translation(Tokenizer(TARGET, None), DRAFT)


def logits(seed: int = 0, **raised: float) -> Logits:
    row = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    for name, value in raised.items():
        row[globals()[name]] = value
    return row


def sampler(temperature: float = 1.0, seed: int = 0, **extras: object) -> StepSampler:
    given = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in extras.items()}
    sampling = Sampling(temperature=temperature, extras=given)
    request = Open("m", "v", CROSS_VOCABULARY_PROMPT, sampling, seed, 20, (END,))
    facts = ModelFacts("m", 7, "v", 100, [END], Limits(4, 16), ["coupled"], [])
    return step_sampler(
        request, facts, coupled.sampler(sampling, seed, len(CROSS_VOCABULARY_PROMPT)), 7
    )


def drawn(pair: Translation, row: Logits, draw: StepSampler, where: Row) -> int:
    return CrossVocabularySampler(pair, draw, [where], 3)(row, 3).token


def test_a_token_counts_for_the_target_token_that_it_begins_with(pair: Translation) -> None:
    row = logits()

    projected = np.exp(pair.projection(row).astype(np.float64))

    weights = np.exp(row.astype(np.float64) - row.max())
    expected = np.zeros(7)
    for token, first in enumerate([END, D, C, B, B, A, C, None]):
        if first is not None:  # the target cannot spell an x
            expected[first] += weights[token]
    assert projected == pytest.approx(expected, abs=1e-6)
    assert projected[AB] == projected[E] == pytest.approx(0.0)


def test_shared_tokens_are_drawn_with_the_targets_noise(pair: Translation) -> None:
    """Where the draft model's distribution is the target's, so is each token that is drawn."""
    shared = {D_: D, C_: C, B_: B, A_: A}
    agreed = others = 0
    for seed in range(400):
        row = logits(seed, STOP_=-50.0, BD_=-50.0, CDA_=-50.0, X_=-50.0)
        own = np.full(7, -50.0, np.float32)
        own[list(shared.values())] = row[list(shared)]
        found = distribution(own, Sampling(temperature=1.0))
        expected = found.picked(seed, noise_index(len(CROSS_VOCABULARY_PROMPT), 3))
        where = Row([A, C, D], b"", [])

        agreed += shared[drawn(pair, row, sampler(seed=seed), where)] == expected
        others += shared[drawn(pair, row, sampler(seed=seed + 1000), where)] == expected

    assert agreed > 360  # the draft model's distribution is sharpened
    assert others < 240  # with other noise


def test_a_longer_token_is_drawn_with_the_noise_of_the_target_token_it_begins_with(
    pair: Translation,
) -> None:
    row = logits(CDA_=30.0)

    assert drawn(pair, row, sampler(), Row([], b"", [])) == CDA_


def test_the_targets_settings_apply_by_its_ids(pair: Translation) -> None:
    row, where = logits(BD_=9.0, C_=8.0), Row([], b"", [])

    assert drawn(pair, row, sampler(0.0), where) == BD_
    assert drawn(pair, row, sampler(0.0, logit_bias={str(B): -100}), where) == C_


def test_a_stop_token_that_is_barred_is_not_drawn(pair: Translation) -> None:
    row = logits(STOP_=9.0, C_=8.0)

    assert drawn(pair, row, sampler(0.0), Row([A], b"", [])) == STOP_
    assert drawn(pair, row, sampler(0.0, min_tokens=2), Row([A], b"", [])) == C_
    assert drawn(pair, row, sampler(0.0, min_tokens=2), Row([A, A], b"", [])) == STOP_


def test_where_a_mask_leaves_what_the_draft_model_lacks_it_still_draws(
    pair: Translation,
) -> None:
    only = {str(token): -100 for token in (A, B, C, D, AB, END)}

    drawn(pair, logits(), sampler(0.0, logit_bias=only), Row([], b"", []))


def test_nothing_follows_that_the_target_would_have_merged(pair: Translation) -> None:
    row = logits(B_=9.0, BD_=8.0, C_=7.0)

    assert drawn(pair, row, sampler(0.0), Row([A], b"", [A])) == C_  # `ab` is one token
    assert drawn(pair, row, sampler(0.0), Row([A], b"", [])) == B_
    assert drawn(pair, row, sampler(0.0), Row([C], b"", [C])) == B_


def test_only_what_agrees_with_the_known_text_is_drawn(pair: Translation) -> None:
    row = logits(A_=9.0, B_=5.0, BD_=6.0)

    assert drawn(pair, row, sampler(0.0), Row([B], b"b", [])) == BD_
    assert drawn(pair, row, sampler(0.0), Row([C, D], b"cd", [])) in (C_, CDA_)


def test_what_pads_the_draft_models_vocabulary_is_never_drawn(pair: Translation) -> None:
    row = np.append(logits(C_=8.0), np.full(3, 50.0, np.float32))

    assert drawn(pair, row, sampler(0.0), Row([], b"", [])) == C_


def test_each_row_has_its_own_place(pair: Translation) -> None:
    rows = [Row([], b"b", []), Row([B], b"", [])]
    draw = CrossVocabularySampler(pair, sampler(0.0), rows, 10)

    assert draw(logits(B_=9.0, C_=20.0), 10).token == B_
    assert draw(logits(B_=9.0, C_=20.0), 11).token == C_
