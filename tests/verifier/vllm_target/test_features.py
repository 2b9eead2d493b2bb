"""Every feature gives the same text with drafts; what cannot be served is refused."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from picospec.speculation.messages import Sampling
from picospec.verifier.target import Unservable
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE, make
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PERSON,
    PROMPTS,
    SHAPED,
    Script,
    drafted,
    opening,
    plain,
    with_extras,
)

pytestmark = ON_ENGINE
FEATURES: dict[str, dict[str, Any]] = {
    "all": SHAPED,
    "structured_outputs": {"structured_outputs": {"json": PERSON}},
}


async def test_a_model_with_recurrent_layers_serves_what_commits_a_token_in_each_step(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(target._engine), "is_recurrent", True)
    recurrent = make(target._engine, self_test=None)
    await recurrent.start()
    request = opening(recurrent, PROMPTS[0], GREEDY)

    assert (target.facts.judges, recurrent.facts.judges) == (
        ["coupled", "separate"],
        ["coupled"],
    )
    await recurrent.check(request)
    with pytest.raises(Unservable, match="fill: `never`"):
        await recurrent.check(replace(request, fill="never"))
    await recurrent.stop()


async def test_an_answer_may_end_before_min_tokens_where_its_grammar_allows_nothing_else(
    target: VllmTarget,
) -> None:
    shaped = with_extras(DRAWN, structured_outputs={"choice": ["yes"]}, min_tokens=20)
    stop = tuple(target.facts.stop_tokens)
    request = opening(target, PROMPTS[0], shaped, max_tokens=40, stop_tokens=stop)

    answer = await plain(target, "short", request)

    text = b"".join(target.tokenizer.piece(token) for token in answer.tokens)
    assert (text, answer.tokens[-1] in stop) == (b"yes", True)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", FEATURES)
async def test_a_feature_gives_the_same_text_with_drafts(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    stop = tuple(target.facts.stop_tokens)
    shaped = with_extras(sampling, **FEATURES[name])
    request = opening(target, PROMPTS[0], shaped, max_tokens=40, stop_tokens=stop)
    expected = await plain(target, f"plain {name}", request)

    answer = await drafted(target, name, request, expected.tokens, Script(wrong=0.3))

    assert answer.tokens == expected.tokens
    assert answer.finish is not None
    assert answer.finish.totals.judged > 0


async def test_logprobs_are_the_same_with_drafts(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], DRAWN, max_tokens=30, top_logprobs=3)
    expected = await plain(target, "plain logprobs", request)

    answer = await drafted(target, "logprobs", request, expected.tokens, Script(wrong=0.3))

    assert answer.tokens == expected.tokens
    assert len(answer.logprobs) == len(expected.logprobs) == 30
    for ours, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
        assert math.isclose(ours.logprob, theirs.logprob, abs_tol=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        assert len(ours.top) == 3


async def test_a_token_the_grammar_rules_out_has_a_log_probability_too(
    target: VllmTarget,
) -> None:
    shaped = with_extras(DRAWN, **FEATURES["structured_outputs"])
    stop = tuple(target.facts.stop_tokens)
    request = opening(
        target, PROMPTS[0], shaped, max_tokens=30, stop_tokens=stop, top_logprobs=20
    )
    expected = await plain(target, "plain json logprobs", request)

    answer = await drafted(target, "json logprobs", request, expected.tokens, Script(wrong=0.3))

    assert answer.tokens == expected.tokens
    assert min(value for each in answer.logprobs for _, value in each.top) == -9999.0


async def test_each_gets_as_many_log_probabilities_as_it_wants(target: VllmTarget) -> None:
    wanted = (0, 5, 2)
    requests = [
        opening(target, PROMPTS[0], GREEDY, max_tokens=20, top_logprobs=count)
        for count in wanted
    ]

    answers = await asyncio.gather(
        *(plain(target, f"wants {r.top_logprobs}", r) for r in requests)
    )

    for count, answer in zip(wanted, answers, strict=True):
        assert {len(each.top) for each in answer.logprobs} == {count}


async def test_a_stop_token_in_the_middle_of_a_verified_run_ends_the_answer(
    target: VllmTarget,
) -> None:
    request = opening(target, PROMPTS[1], GREEDY, max_tokens=40)
    everything = (await plain(target, "no stop", request)).tokens
    stop = next(t for i, t in enumerate(everything) if i > 9 and t not in everything[:i])
    stopped = opening(target, PROMPTS[1], GREEDY, max_tokens=40, stop_tokens=(stop,))

    answer = await drafted(target, "stop", stopped, everything, Script())

    assert answer.tokens == everything[: everything.index(stop) + 1]
    assert answer.finish is not None
    assert answer.finish.reason == "stop"


async def test_what_vllm_refuses_is_refused_before_anything_is_awaited(
    target: VllmTarget,
) -> None:
    nonsense = {"json": {"type": "nonsense"}}
    request = opening(target, PROMPTS[0], with_extras(GREEDY, structured_outputs=nonsense))
    asking = asyncio.create_task(plain(target, "nonsense", request))

    await asyncio.sleep(0)

    assert asking.done()
    with pytest.raises(Unservable):
        await asking

    assert (await target.figures())["sessions"] == 0
