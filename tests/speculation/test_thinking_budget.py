"""A budget concerns one position: where reasoning that it began with has not ended in time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.protocol.errors import InvalidSetting
from tests.speculation.test_adjustments import LOGITS, TEXT, V, adjusting, asking

CLOSING, OPENING = 5, 3


@given(TEXT, st.integers(0, 9), st.booleans())
def test_reasoning_has_no_more_tokens_than_its_budget(
    output: list[int], tokens: int, begins: bool
) -> None:
    asked = {"tokens": tokens, "closing": CLOSING, **({"opening": OPENING} if begins else {})}
    thought = output[begins:]
    is_over = len(thought) == tokens and CLOSING not in output

    adjusted = adjusting(asking(thinking_budget=asked))(LOGITS, output)

    if is_over and len(output) >= begins and output[:begins] == [OPENING][:begins]:
        assert np.flatnonzero(np.isfinite(adjusted)).tolist() == [CLOSING]
    else:
        assert adjusted.tolist() == LOGITS.tolist()


@pytest.mark.parametrize(
    "asked", [{}, {"tokens": -1, "closing": 1}, {"tokens": 1, "closing": V}, {"tokens": 1}, 7]
)
def test_a_budget_that_is_none_is_an_error(asked: object) -> None:
    with pytest.raises(InvalidSetting, match="thinking_budget"):
        adjusting(asking(thinking_budget=asked))
