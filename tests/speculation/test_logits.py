"""What a client asks for reaches both ends, and changes the logits as others define it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ports import Job, opening
from speculation import logits as adjustments
from speculation.errors import InvalidSetting
from speculation.logit_settings import MAX_BIASES
from speculation.logits import Adjust, adjustment, in_turn
from speculation.messages import Open, Sampling
from speculation.model_facts import Limits, ModelFacts
from tests.speculation.small_models import slow

V = 12
STOPS = (0, 2)
LOGITS = np.array([3.0, 1.0, 2.0, 0.0, -1.0, -2.0, 4.0, 0.5, -0.5, 2.5, -3.0, 1.5], np.float32)
UNLIKELY = np.array([0.0, -np.inf, 1.0] + [-np.inf] * 9, np.float32)
"""Only stop tokens are left, as where a grammar wants the text to end."""

TEXT = st.lists(st.integers(0, V - 1), max_size=40)
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.01, 2),
        "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100)),
        "min_tokens": st.integers(0, 30),
    },
)


def asking(
    prompt: Sequence[int] = (1,), stop_tokens: Sequence[int] = STOPS, **extras: object
) -> Open:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in extras.items()}
    return Open("m", "v", tuple(prompt), Sampling(extras=raw), 0, 30, tuple(stop_tokens))


def adjusting(request: Open) -> Adjust:
    return adjustment(request, vocabulary_size=V) or (lambda logits, output: logits)


@given(TEXT, TEXT, EXTRAS)
def test_the_logits_become_what_the_definitions_say_and_no_others_are_touched(
    prompt: list[int], output: list[int], asked: dict[str, Any]
) -> None:
    adjusted = adjusting(asking(prompt, **asked))(LOGITS, output)

    assert adjusted.dtype == np.float32
    expected = slow(LOGITS.tolist(), prompt, output, asked, STOPS)
    concerned = {*prompt, *output, *asked.get("logit_bias", {}), *STOPS}
    others = [token for token in range(V) if token not in concerned]
    assert adjusted[others].tolist() == LOGITS[others].tolist()
    np.testing.assert_allclose(adjusted, expected, rtol=1e-5, atol=1e-4)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=6), EXTRAS, st.sampled_from([0, 3, 100]))
def test_they_depend_on_the_text_alone_and_not_on_what_was_asked_before(
    prompt: list[int], outputs: list[list[int]], asked: dict[str, Any], few: int
) -> None:
    """Each text is asked for from its beginning to its end, as passes and chains do; the next
    one breaks from it somewhere. `few` decides how tokens are added to what was seen."""
    request = asking(prompt, **asked)
    before, one = LOGITS.copy(), adjusting(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjustments, "FEW", few)
        for output in outputs:
            found = [one(LOGITS, output[:end]) for end in range(0, len(output) + 1, 2)]
            for end, adjusted in zip(range(0, len(output) + 1, 2), found, strict=True):
                alone = adjusting(request)(LOGITS, tuple(output[:end]))
                assert adjusted.tobytes() == alone.tobytes()
    assert before.tobytes() == LOGITS.tobytes()


def test_the_answer_may_stop_where_nothing_else_is_left() -> None:
    adjusted = adjusting(asking(min_tokens=3))(UNLIKELY, [1])

    assert adjusted.tolist() == UNLIKELY.tolist()


@pytest.mark.parametrize(
    "request_",
    [
        asking(),
        asking(min_tokens=0),
        asking(min_tokens=3, stop_tokens=()),
        asking(presence_penalty=0, frequency_penalty=0.0, repetition_penalty=1, logit_bias={}),
        asking(response_format={"type": "text"}),
    ],
)
def test_a_request_that_changes_nothing_costs_nothing(request_: Open) -> None:
    assert adjustment(request_, vocabulary_size=V) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("min_tokens", value) for value in (-1, 31, 1.5, "3", [1], True, None)),
        *(("presence_penalty", value) for value in (-2.1, 2.1, "1", None)),
        *(("frequency_penalty", value) for value in (-2.1, 2.1, [])),
        *(("repetition_penalty", value) for value in (0, -1, 2.1, {})),
        *(("logit_bias", value) for value in ([1], {"x": 1}, {"-1": 1}, {"1": 101}, {"12": 1})),
        ("logit_bias", {str(token): 1 for token in range(MAX_BIASES + 1)}),
        ("logit_bias", {str(2**70): 1}),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_field(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name) as raised:
        adjustment(asking(**{name: value}), vocabulary_size=V)

    assert raised.value.name == name


def test_two_adjustments_apply_in_turn_and_none_changes_nothing() -> None:
    doubled: Adjust = lambda logits, output: logits * 2  # noqa: E731
    longer: Adjust = lambda logits, output: logits + len(output)  # noqa: E731

    both = in_turn(doubled, longer)

    assert both is not None
    np.testing.assert_array_equal(both(LOGITS, [1, 2, 3]), LOGITS * 2 + 3)
    assert in_turn(doubled, None) is doubled
    assert in_turn(None, longer) is longer
    assert in_turn(None, None) is None


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


# The session that a client asks for is the same at both ends.

FACTS = ModelFacts("big", 100, "print", 512, [7, 8], Limits(), ["coupled"], [])


def opened(**extras: object) -> Open:
    job = Job("r", (1, 2), 20, Sampling(0.5, 0.1, 3, 0.9), 9, 4, MappingProxyType(extras))
    return opening(job, FACTS)


def test_the_settings_travel_by_their_names() -> None:
    request = opened(logit_bias={5: 1}, min_tokens=2)

    given = request.sampling
    assert (given.temperature, given.min_p, given.top_k, given.top_p) == (0.5, 0.1, 3, 0.9)
    assert {k: bytes(v) for k, v in given.extras.items()} == {
        "logit_bias": b'{"5":1}',
        "min_tokens": b"2",
    }
    assert (request.seed, request.max_tokens, request.top_logprobs) == (9, 20, 4)


@pytest.mark.parametrize(
    ("extras", "stops"),
    [
        ({}, (7, 8)),
        ({"ignore_eos": False}, (7, 8)),
        ({"ignore_eos": True}, ()),
        ({"stop_token_ids": [5, 8]}, (7, 8, 5)),
        ({"ignore_eos": True, "stop_token_ids": [5, 8]}, (5, 8)),
    ],
)
def test_the_answer_stops_at_the_models_tokens_and_the_clients(
    extras: dict[str, object], stops: tuple[int, ...]
) -> None:
    request = opened(**extras)

    assert request.stop_tokens == stops
    assert request.sampling.extras == {}


@pytest.mark.parametrize("token", [-1, 100])
def test_what_is_no_token_cannot_stop(token: int) -> None:
    with pytest.raises(InvalidSetting, match="stop_token_ids"):
        opened(stop_token_ids=[1, token])


def test_a_prediction_is_no_sampling_setting() -> None:
    assert opened(prediction="text") == opened()
