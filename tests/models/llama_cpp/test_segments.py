"""Segments that are refused before llama.cpp gets them."""

from __future__ import annotations

import pytest

from picospec.models.errors import BadSegment, NoRoom
from picospec.models.llama_cpp.model import Limits, Segment, check

LIMITS = Limits(sequences=2, context_tokens=10, batch_tokens=6, vocabulary_size=100)
HELD = {0: 3, 1: 8}


def test_segments_of_two_sequences_that_go_on_where_they_are_pass() -> None:
    check([Segment(0, 3, [1, 2, 3]), Segment(1, 8, [0, 99])], LIMITS, HELD.__getitem__)


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([], id="no-rows"),
        pytest.param([Segment(0, 3, [1] * 7)], id="more-rows-than-a-pass-takes"),
        pytest.param([Segment(0, 3, [1]), Segment(1, 8, [])], id="an-empty-segment"),
        pytest.param([Segment(0, 3, [1]), Segment(0, 4, [2])], id="one-sequence-twice"),
        pytest.param([Segment(2, 0, [1])], id="a-sequence-that-does-not-exist"),
        pytest.param([Segment(-1, 0, [1])], id="a-negative-sequence"),
        pytest.param([Segment(0, 4, [1])], id="a-gap"),
        pytest.param([Segment(0, 2, [1])], id="a-position-already-decoded"),
        pytest.param([Segment(0, 3, [100])], id="a-token-beyond-the-vocabulary"),
        pytest.param([Segment(0, 3, [-1])], id="a-negative-token"),
    ],
)
def test_a_segment_that_breaks_a_rule_is_refused(segments: list[Segment]) -> None:
    with pytest.raises(BadSegment):
        check(segments, LIMITS, HELD.__getitem__)


def test_a_sequence_that_would_outgrow_its_context_has_no_room() -> None:
    with pytest.raises(NoRoom, match="sequence 1"):
        check([Segment(1, 8, [1, 2, 3])], LIMITS, HELD.__getitem__)
