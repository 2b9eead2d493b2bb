"""What the timing of the judge rests on: a step whose draft tokens are all accepted."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bench.calibrate.kernels import (
    SAMPLINGS,
    accepted_everywhere,
    differing,
    judged,
    step,
    timed_s,
)
from speculation.sampling.judging import Judgement


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_draft_token_of_the_step_is_accepted(name: str) -> None:
    logits = step(sessions=3, drafts=4, vocabulary=500)
    requests = accepted_everywhere(SAMPLINGS[name], logits)

    found = judged(requests, logits)

    assert [judgement.accepted for judgement in found] == [4, 4, 4]
    assert timed_s(requests, logits, repeats=1) > 0.0


def test_tokens_that_differ_are_counted_one_by_one() -> None:
    some = [Judgement((1, 2, 3), 2), Judgement((4,), 0)]
    others = [Judgement((1, 9), 1), Judgement((4,), 0)]

    assert differing(some, some) == 0
    assert differing(some, others) == 2
