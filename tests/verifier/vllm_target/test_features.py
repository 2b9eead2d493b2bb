"""Every feature gives the same text with drafts, and what cannot be served is refused:
settings, grammars, committed tokens to begin with, and prefixes that only one tenant reuses.
"""

from __future__ import annotations

import asyncio
import math
import re
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from speculation.messages import CachedPromptTokens, Open, Sampling
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
from verifier.owners import Owners
from verifier.target import Unservable
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
FEATURES: dict[str, dict[str, Any]] = {
    "all": SHAPED,
    "structured_outputs": {"structured_outputs": {"json": PERSON}},
}


def stopping(target: VllmTarget, sampling: Sampling, **fields: object) -> Open:
    """An Open that also ends where the model would."""
    stop = tuple(target.facts.stop_tokens)
    given = {"max_tokens": 40, "stop_tokens": stop, **fields}
    return opening(target, PROMPTS[0], sampling, **given)


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
    request = stopping(target, shaped)

    answer = await plain(target, "short", request)

    text = b"".join(target.tokenizer.piece(token) for token in answer.tokens)
    assert (text, answer.tokens[-1] in request.stop_tokens) == (b"yes", True)


@SAMPLINGS
@pytest.mark.parametrize("name", FEATURES)
async def test_a_feature_gives_the_same_text_with_drafts(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    request = stopping(target, with_extras(sampling, **FEATURES[name]))
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
    request = stopping(target, shaped, max_tokens=30, top_logprobs=20)
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
    hot = Sampling(temperature=1.5)  # in whose texts new tokens come late, too
    request = opening(target, PROMPTS[1], hot, max_tokens=40)
    everything = (await plain(target, "no stop", request)).tokens
    stop = next(t for i, t in enumerate(everything) if i > 9 and t not in everything[:i])
    stopped = opening(target, PROMPTS[1], hot, max_tokens=40, stop_tokens=(stop,))

    answer = await drafted(target, "stop", stopped, everything, Script())

    assert answer.tokens == everything[: everything.index(stop) + 1]
    assert answer.finish is not None
    assert answer.finish.reason == "stop"


async def test_what_vllm_refuses_is_refused_before_anything_is_awaited(
    target: VllmTarget,
) -> None:
    nonsense = {"json": {"type": "nonsense"}}
    request = opening(target, PROMPTS[0], with_extras(GREEDY, structured_outputs=nonsense))
    asking = asyncio.create_task(target.serve("nonsense", request, print))

    await asyncio.sleep(0)

    assert asking.done()
    with pytest.raises(Unservable):
        await asking

    assert (await target.figures())["sessions"] == 0


# The edge and vLLM mean the same by a grammar, and vLLM sees none that was not tried.


CONSTRAINTS: dict[str, tuple[dict[str, Any], str]] = {
    "json": ({"json": PERSON}, r'(?s)\{\s*("name".*)?'),
    "compact": ({"json": {**PERSON, "x-guidance": {"whitespace_flexible": False}}}, r'\{"na.*'),
    "json_object": ({"json_object": True}, r"(?s)\{.*"),
    "regex": ({"regex": r"[A-Z][a-z]{2,8} \d{2}"}, r"[A-Z][a-z]{2,8} \d{2}"),
    "choice": ({"choice": ["positive", "negative"]}, "positive|negative"),
    "grammar": ({"grammar": 'start: "yes" | "no" " way"?'}, "yes|no( way)?"),
}


@SAMPLINGS
@pytest.mark.parametrize("name", CONSTRAINTS)
async def test_every_token_is_one_that_the_edge_allows_and_every_forced_one_is_the_same(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    constraint, pattern = CONSTRAINTS[name]
    request = stopping(target, with_extras(sampling, structured_outputs=constraint))
    grammar = await target.grammars.compile(msgspec.json.encode(constraint))

    tokens = (await plain(target, f"plain {name}", request)).tokens
    answer = await drafted(target, name, request, tokens, Script(wrong=0.3))

    assert answer.tokens == tokens
    text = b"".join(target.tokenizer.piece(token) for token in tokens).decode()
    assert re.fullmatch(pattern, text)
    state, logits = grammar.begin(), np.zeros(target.facts.vocabulary_size, np.float32)
    forced = 0
    for at, token in enumerate(tokens):
        assert state.mask(logits, tokens[:at])[token] == 0.0
        if (only := state.forced()) is not None:
            assert only == token
            forced += 1
    assert forced > 0 or name in ("json", "json_object", "regex")


async def test_a_grammar_is_tried_before_vllm_sees_it(target: VllmTarget) -> None:
    multiple = {"json": {"type": "integer", "multipleOf": 1000003}}
    takes_seconds = with_extras(GREEDY, structured_outputs=multiple)
    request = opening(target, PROMPTS[0], takes_seconds, max_tokens=8)

    with pytest.raises(Unservable, match="takes more than") as raised:
        await target.check(request)

    assert raised.value.param == "structured_outputs.json"
    quick = with_extras(GREEDY, structured_outputs={"regex": "a+"})
    await target.check(opening(target, PROMPTS[0], quick))


# A session that begins with committed tokens goes on as the one that generated them.


EXTRAS: dict[str, dict[str, object]] = {
    "plain": {},
    "shaped": {"presence_penalty": 1.5, "repetition_penalty": 1.2, "min_tokens": 30},
    "schema": {"structured_outputs": {"json": PERSON}},
}


@SAMPLINGS
@pytest.mark.parametrize("name", EXTRAS)
async def test_text_and_log_probabilities_go_on_after_committed_tokens(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    request = stopping(target, with_extras(sampling, **EXTRAS[name]), top_logprobs=2)
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


# What vLLM has read for one tenant it reads again for another, unless they share prefixes.


@pytest.mark.parametrize("shared", [False, True])
async def test_a_prompt_is_read_once_for_each_tenant(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(target, "owners", Owners(shared))
    prompt = tuple(1000 + 200 * shared + i for i in range(200))
    asked = opening(target, "", Sampling(temperature=0.0), max_tokens=2)
    request = replace(asked, prompt=prompt)
    cached_tokens = list[list[CachedPromptTokens]]()
    for i, tenant in enumerate(["ann", "ann", "ben"]):
        async with aclosing(target.replies(f"prefix {i}", request, tenant)) as replies:
            cached_tokens.append(
                [r.message async for r in replies if isinstance(r.message, CachedPromptTokens)]
            )

    assert [len(each) for each in cached_tokens] == [0, 1, shared]
