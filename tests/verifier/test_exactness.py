"""The self-test at the start, over devices that round in one way or another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.errors import CannotOpen
from speculation.distributions import Logits
from verifier.llama_target.exactness import (
    CELLS,
    POSITIONS,
    Decode,
    Shape,
    exact_shape,
    padded,
    rounding,
    sample,
    windows,
)

V, ROWS = 32, 8
TOKENS = sample([(7 * i * i) % V for i in range(400)], 4096)


def device(error: Callable[[int, int], float]) -> Decode:
    """Return a device whose logits depend on position and token. error(rows, place): added to
    all logits of a row but the best, by the number of rows and the row's place among them."""

    def decode(start: int, tokens: Sequence[int]) -> Sequence[Logits]:
        rows = []
        for place, token in enumerate(tokens):
            chance = np.random.default_rng((start + place, token))
            logits = chance.normal(size=V).astype(np.float32)
            logits += np.float32(error(len(tokens), place)) * (logits < logits.max())
            rows.append(logits)
        return rows

    return decode


BY_ROWS = device(lambda rows, place: 0.001 * rows)
FROM_FIVE_ROWS_ON = device(lambda rows, place: 0.001 * (rows > 4))
BY_PLACE_FROM_FIVE_ROWS_ON = device(lambda rows, place: 0.001 * (rows > 4) * place)
BY_PLACE = device(lambda rows, place: 0.001 * (rows > 1) * (place + 1))


@pytest.mark.parametrize(
    ("decode", "equal_rows", "shape"),
    [
        (device(lambda rows, place: 0.0), ROWS, Shape(ROWS, is_padded=False)),
        (BY_ROWS, 1, Shape(ROWS, is_padded=True)),
        (FROM_FIVE_ROWS_ON, 4, Shape(ROWS, is_padded=True)),
        (BY_PLACE_FROM_FIVE_ROWS_ON, 4, Shape(4, is_padded=False)),
    ],
)
def test_strict_takes_all_rows_then_padding_then_fewer_rows(
    decode: Decode, equal_rows: int, shape: Shape
) -> None:
    findings = rounding(decode, TOKENS, ROWS)

    assert findings.equal_rows == equal_rows
    assert exact_shape(decode, TOKENS, ROWS, findings) == shape


def test_strict_is_refused_where_no_pass_is_exact() -> None:
    with pytest.raises(CannotOpen, match=r'exact = "near" is what it can do'):
        exact_shape(BY_PLACE, TOKENS, ROWS, rounding(BY_PLACE, TOKENS, ROWS))


def test_near_ties_are_counted_and_a_wrong_kernel_is_an_error() -> None:
    near = rounding(device(lambda rows, place: 0.3 * (rows > 1)), TOKENS, ROWS)

    assert near.changed_argmaxes > 0
    assert 0 < near.widest_gap <= 0.3 + 1e-6
    assert near.widest_difference == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(CannotOpen, match="a kernel of this device is wrong"):
        rounding(device(lambda rows, place: 9.0 * (rows > 1)), TOKENS, ROWS)


def test_a_difference_that_shows_at_few_places_is_found() -> None:
    wrong = device(lambda rows, place: 0.001 * (rows > 1))
    right = device(lambda rows, place: 0.0)

    def decode(start: int, tokens: Sequence[int]) -> Sequence[Logits]:
        return (wrong if start <= CELLS < start + len(tokens) else right)(start, tokens)

    assert rounding(decode, TOKENS, ROWS).equal_rows == 1


def test_the_sample_crosses_the_cells_and_stays_in_the_context() -> None:
    assert len(TOKENS) - POSITIONS < CELLS < len(TOKENS)
    assert len(sample(range(400), 100)) == 100


@given(st.integers(0, 2000), st.integers(1, ROWS))
def test_padded_passes_compute_each_position_once(start: int, count: int) -> None:
    passes = windows(start, start + count, ROWS)

    assert [p for each in passes for p in range(each.first, each.end)] == list(
        range(start, start + count)
    )
    for each in passes:
        assert 0 <= each.begin <= each.first < each.end <= each.begin + ROWS
        assert each.begin // CELLS == (each.begin + ROWS - 1) // CELLS


def test_a_device_that_rounds_by_its_cells_is_exact_in_padded_passes() -> None:
    right = device(lambda rows, place: 0.001 * rows)

    def decode(start: int, tokens: Sequence[int]) -> Sequence[Logits]:
        cells = (start + len(tokens) - 1) // CELLS
        return [row + np.float32(0.001 * cells) for row in right(start, tokens)]

    shape = exact_shape(decode, TOKENS, ROWS, rounding(decode, TOKENS, ROWS))
    assert shape == Shape(ROWS, is_padded=True)


def test_padding_repeats_the_last_token() -> None:
    assert padded((5, 6), 4) == [5, 6, 6, 6]
    assert padded((5, 6), 2) == [5, 6]
