"""A session that begins with committed tokens goes on as the one that generated them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from picospec.speculation.messages import Sampling
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PERSON,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
)

pytestmark = ON_ENGINE
EXTRAS: dict[str, dict[str, object]] = {
    "plain": {},
    "shaped": {"presence_penalty": 1.5, "repetition_penalty": 1.2, "min_tokens": 30},
    "schema": {"structured_outputs": {"json": PERSON}},
}


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", EXTRAS)
async def test_text_and_log_probabilities_go_on(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in EXTRAS[name].items()}
    shaped = msgspec.structs.replace(sampling, extras=raw)
    stop = tuple(target.facts.stop_tokens)
    request = opening(
        target, PROMPTS[0], shaped, max_tokens=40, stop_tokens=stop, top_logprobs=2
    )
    whole = await plain(target, "whole", request)

    for known in (1, len(whole.tokens) // 2, len(whole.tokens) - 1):
        rest = replace(request, committed=tuple(whole.tokens[:known]))
        alone = await plain(target, f"alone {known}", rest)
        edge = await drafted(target, f"drafts {known}", rest, whole.tokens, Script(wrong=0.3))

        for answer in (alone, edge):
            assert answer.tokens == whole.tokens
            assert [each.logprob for each in answer.logprobs] == pytest.approx(
                [each.logprob for each in whole.logprobs[known:]], abs=1e-3
            )  # a prompt's rows are rounded otherwise than those of passes
            assert answer.finish
            assert whole.finish
            assert answer.finish.reason == whole.finish.reason
