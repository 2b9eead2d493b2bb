"""What a request changes of the logits, the same for the judge and the edge."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from speculation.protocol.messages import Open, Sampling
from speculation.sampling.adjustments import adjustment

LOGITS = np.array([3.0, 1.0, 2.0, 0.0], np.float32)


def asking(min_tokens: object = None, stop_tokens: tuple[int, ...] = (0, 2)) -> Open:
    extras = {} if min_tokens is None else {"min_tokens": msgspec.json.encode(min_tokens)}
    sampling = Sampling(extras={name: msgspec.Raw(value) for name, value in extras.items()})
    return Open("m", "v", (1,), sampling, 0, max_tokens=10, stop_tokens=stop_tokens)


@pytest.mark.parametrize(("position", "can_stop"), [(0, False), (2, False), (3, True)])
def test_no_stop_token_can_be_generated_before_the_least_length(
    position: int, can_stop: bool
) -> None:
    before = LOGITS.copy()

    adjusted = adjustment(asking(3))(LOGITS, position)

    assert np.isfinite(adjusted[[0, 2]]).tolist() == [can_stop, can_stop]
    assert adjusted[[1, 3]].tolist() == LOGITS[[1, 3]].tolist()
    assert np.array_equal(LOGITS, before)


@pytest.mark.parametrize("request_", [asking(), asking(0), asking(3, stop_tokens=())])
def test_other_requests_leave_the_logits_alone(request_: Open) -> None:
    assert adjustment(request_)(LOGITS, 0) is LOGITS


@pytest.mark.parametrize("value", [-1, 11, 1.5, "3", [1], True])
def test_what_is_no_least_length_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"11|-1|int"):
        adjustment(asking(value))


def test_the_answer_may_have_to_be_as_long_as_it_can_be() -> None:
    assert not np.isfinite(adjustment(asking(10))(LOGITS, 9)[0])
