"""From an Open to vLLM's parameters, and from a settings table to vLLM's options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from picospec.speculation.logits import LogitSettings
from picospec.speculation.messages import Limits, ModelFacts, Open, Sampling
from picospec.verifier.target import FEATURES, Unservable
from picospec.verifier.vllm_target.crossing import FIELD, Admission
from picospec.verifier.vllm_target.serving.target import engine_request

FACTS = ModelFacts("m", 100, "v", 256, [2], Limits(), ["coupled"], list(FEATURES))


def opening(**extras: object) -> Open:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in extras.items()}
    sampling = Sampling(0.7, 0.1, 40, 0.9, raw)
    return Open("m", "v", (1, 2, 3), sampling, 5, 64, (2,), top_logprobs=3)


def admitted(asked: dict[str, Any]) -> Admission:
    return Admission.unpack(asked["extra_args"][FIELD])


def test_the_sampling_settings_are_left_to_our_judge() -> None:
    asked = engine_request("s", opening(), FACTS)

    assert asked["temperature"] == 1.0
    assert not {"top_p", "top_k", "min_p", "seed", "logit_bias"} & asked.keys()
    given = admitted(asked).request.sampling
    assert (given.temperature, given.min_p, given.top_k, given.top_p) == (0.7, 0.1, 40, 0.9)


def test_only_the_sessions_stop_tokens_stop() -> None:
    asked = engine_request("s", opening(), FACTS)

    assert asked["ignore_eos"]
    assert asked["stop_token_ids"] == [2]


def test_penalties_and_bias_are_left_to_our_judge_too() -> None:
    asked = engine_request(
        "s", opening(presence_penalty=1, logit_bias={"7": -3}, min_tokens=4), FACTS
    )

    assert not {"presence_penalty", "logit_bias", "min_tokens"} & asked.keys()
    settings = LogitSettings(presence_penalty=1.0, logit_bias={7: -3.0}, min_tokens=4)
    assert admitted(asked).settings == settings
    assert admitted(asked).request.sampling.extras == {}


def test_vllm_applies_the_settings_where_its_own_sampler_draws() -> None:
    request = replace(
        opening(presence_penalty=1, logit_bias={"7": -3}), seed=2**64 - 5, committed=(4, 4)
    )

    asked = engine_request("s", request, FACTS, drawn_by_vllm=True)

    wanted = {"temperature": 0.7, "min_p": 0.1, "top_k": 40, "top_p": 0.9, "seed": -5}
    wanted |= {"presence_penalty": 1.0, "logit_bias": {7: -3.0}, "max_tokens": 64}
    assert {name: asked[name] for name in wanted} == wanted
    assert admitted(asked).settings == LogitSettings()
    assert admitted(asked).request.sampling == Sampling()


def test_a_schema_is_passed_on_to_vllm_as_the_client_wrote_it() -> None:
    request = opening(structured_outputs={"json": {"b": 1, "a": 2}})

    assert engine_request("s", request, FACTS)["structured_outputs"] == {
        "json": '{"b":1,"a":2}'
    }


@pytest.mark.parametrize(
    "wanted",
    [
        {"json_object": True},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": "root ::= a"},
    ],
)
def test_a_constraint_is_passed_on_to_vllm(wanted: dict[str, object]) -> None:
    request = opening(structured_outputs=wanted)

    assert engine_request("s", request, FACTS)["structured_outputs"] == wanted


def test_a_grammar_and_judge_separate_do_not_go_together() -> None:
    request = replace(opening(structured_outputs={"json_object": True}), judge="separate")

    with pytest.raises(Unservable, match="structured_outputs"):
        engine_request("s", request, FACTS)


@pytest.mark.parametrize(
    "extras",
    [
        {"logit_bias": {"100": 1.0}},
        {"logit_bias": {"5": 101.0}},
        {"logit_bias": [1]},
        {"presence_penalty": -2.5},
        {"repetition_penalty": 0},
        {"min_tokens": 65},
        {"min_tokens": 1.5},
        {"structured_outputs": {"json": {}, "json_object": True}},
        {"structured_outputs": {}},
        {"structured_outputs": {"structural_tag": "a"}},
    ],
)
def test_bad_values_are_refused_by_name(extras: dict[str, object]) -> None:
    with pytest.raises(Unservable, match=next(iter(extras))):
        engine_request("s", opening(**extras), FACTS)
