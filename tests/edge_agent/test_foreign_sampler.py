"""How tokens are drawn of a draft model that has another vocabulary than the target."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from picospec.edge_agent.draft.drafter import StepSampler, step_sampler
from picospec.edge_agent.draft.foreign import ForeignSampler, Row
from picospec.edge_agent.draft.retokeniser import Translation
from picospec.models.tokenizer import Tokenizer
from picospec.speculation import coupled
from picospec.speculation.distributions import Logits, distribution, noise_index
from picospec.speculation.messages import Limits, ModelFacts, Open, Sampling
from tests.edge_agent.words import WordEncoder

TARGET = WordEncoder([b"a", b"b", b"c", b"d", b"ab", b"<end>", b"e"], special={5})
DRAFT = WordEncoder([b"<stop>", b"d", b"c", b"bd", b"b", b"a", b"cda", b"x"], special={0})
A, B, C, D, AB, END, E = range(7)
STOP_, D_, C_, BD_, B_, A_, CDA_, X_ = range(8)
"""Tokens of the target, and those of the draft model."""

PROMPT = (A, B)


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
    request = Open("m", "v", PROMPT, sampling, seed, 20, (END,))
    facts = ModelFacts("m", 7, "v", 100, [END], Limits(4, 16), ["coupled"], [])
    return step_sampler(request, facts, coupled.sampler(sampling, seed, len(PROMPT)), 7)


def drawn(pair: Translation, row: Logits, draw: StepSampler, where: Row) -> int:
    return ForeignSampler(pair, draw, [where], 3)(row, 3).token


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
        expected = found.picked(seed, noise_index(len(PROMPT), 3))
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
    draw = ForeignSampler(pair, sampler(0.0), rows, 10)

    assert draw(logits(B_=9.0, C_=20.0), 10).token == B_
    assert draw(logits(B_=9.0, C_=20.0), 11).token == C_
