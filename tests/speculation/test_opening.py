"""The session that a client asks for is the same at both ends."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from picospec.gateway.ports import Job, Sampling
from picospec.speculation.messages import InvalidSetting, Limits, ModelFacts, Open, opening

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
