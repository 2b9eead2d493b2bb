"""Every feature gives the same text with drafts, and in vLLM's own requests beside sessions:
settings, grammars, committed tokens, prefixes. What cannot be served is refused.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace
from itertools import starmap
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from speculation.messages import (
    UNLIKELY,
    CachedPromptTokens,
    Fill,
    Open,
    Sampling,
    TokenLogprob,
)
from tests.guards import GUARD_S
from tests.verifier.vllm_target.conftest import ON_ENGINE, make
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PERSON,
    PROMPTS,
    SHAPED,
    Script,
    drafted,
    gone,
    opening,
    plain,
    recovered,
    said_by_vllm,
    served,
    with_extras,
)
from verifier.owners import Owners
from verifier.target import Unservable
from verifier.vllm_target.ipc_messages import FIELD
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
FEATURES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 3),
    "all settings": (SHAPED, 2),
    "schema": ({"structured_outputs": {"json": PERSON}}, 20),
}
"""What is asked, and how many log-probabilities."""


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


def likeliest_of(logprobs: list[TokenLogprob]) -> list[list[int]]:
    return [[token for token, _ in each.top] for each in logprobs]


@SAMPLINGS
@pytest.mark.parametrize("name", FEATURES)
async def test_text_and_log_probabilities_are_the_same_with_drafts_and_after_committed_tokens(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    """A session that begins with committed tokens goes on as the one that generated them. Some
    likeliest tokens are those that a grammar rules out."""
    extras, likeliest = FEATURES[name]
    request = stopping(target, with_extras(sampling, **extras), top_logprobs=likeliest)
    whole = await plain(target, "whole", request)

    for known in (0, 1, len(whole.tokens) // 2, len(whole.tokens) - 1):
        rest = replace(request, committed=tuple(whole.tokens[:known]))
        answers = [await drafted(target, f"at {known}", rest, whole.tokens, Script(wrong=0.3))]
        if known:
            answers.append(await plain(target, f"alone {known}", rest))
        else:
            assert answers[0].finish
            assert answers[0].finish.totals.judged > 0

        for answer in answers:
            assert answer.tokens == whole.tokens
            expected, found = whole.logprobs[known:], answer.logprobs
            assert name == "schema" or likeliest_of(found) == likeliest_of(expected)
            assert [each.logprob for each in found] == pytest.approx(
                [each.logprob for each in expected], abs=1e-3
            )  # a prompt's rows are rounded otherwise than those of passes
            assert answer.finish
            assert whole.finish
            assert answer.finish.reason == whole.finish.reason
    least = min(value for each in whole.logprobs for _, value in each.top)
    assert name != "schema" or least == UNLIKELY


async def test_each_gets_as_many_log_probabilities_as_it_wants(target: VllmTarget) -> None:
    wanted = (0, 5, 2)
    requests = [
        opening(target, PROMPTS[0], GREEDY, max_tokens=20, top_logprobs=count)
        for count in wanted
    ]

    answers = await asyncio.gather(
        *(plain(target, f"wants {r.top_logprobs}", r) for r in requests)
    )

    for asked, answer in zip(wanted, answers, strict=True):
        assert {len(each.top) for each in answer.logprobs} == {asked}


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


# vLLM's own requests beside sessions generate what they generate alone.

SHAPE = {name: value for name, value in SHAPED.items() if name != "min_tokens"}
OWN: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"seed": 1},
    "cut": {"seed": 2, "temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "min-p": {"seed": 3, "min_p": 0.1},
    "negative seed": {"seed": -4},
    "bias and penalties": {"temperature": 0.0, **SHAPE},
    "log-probabilities": {"seed": 5, "logprobs": 3},
    "bad words": {"temperature": 0.0, "bad_words": [" the", "city of"]},
    "schema": {"temperature": 0.0, "schema": PERSON},
}
"""Settings of requests without a session."""


@pytest.fixture(autouse=True)
def _as_with_the_plugin(target: VllmTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams

    monkeypatch.setattr(SamplingParams, "_validate_spec_decode", lambda *_: None)


async def own(
    target: VllmTarget, prompt: str, **settings: Any
) -> tuple[list[int], list[float]]:
    """Run a request without a session; return its tokens, and their log-probabilities."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    schema = settings.pop("schema", None)
    asked = SamplingParams(
        **{"max_tokens": 32, "ignore_eos": not schema, **settings},
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
    )
    output = await said_by_vllm(target, target.tokenizer.encode(prompt), asked)
    (done,) = output.outputs
    pairs = zip(done.token_ids, done.logprobs or (), strict=False)
    return list(done.token_ids), [known[token].logprob for token, known in pairs]


async def test_requests_beside_sessions_generate_what_they_generate_alone(
    target: VllmTarget,
) -> None:
    pairs = [(PROMPTS[i % len(PROMPTS)], asked) for i, asked in enumerate(OWN.values())]
    alone = [await own(target, prompt, **asked) for prompt, asked in pairs]
    fills: list[Fill] = ["always", "auto", "never", "auto"]
    requests = [
        opening(target, PROMPTS[i], (GREEDY, DRAWN)[i % 2], fill=fill)
        for i, fill in enumerate(fills)
    ]
    oracles = [
        (await plain(target, f"oracle {i}", replace(each, fill="always"))).tokens
        for i, each in enumerate(requests)
    ]
    separate = opening(target, PROMPTS[5], DRAWN, judge="separate")

    async with asyncio.TaskGroup() as tasks:
        rejecting = tasks.create_task(recovered(target, "separate", separate, Random(3)))
        sessions = [
            tasks.create_task(drafted(target, f"beside {i}", r, oracles[i], Script(0.2 * i)))
            for i, r in enumerate(requests)
        ]
        await served(target, 5, 20.0)
        requested = [tasks.create_task(own(target, prompt, **asked)) for prompt, asked in pairs]
    beside = [each.result() for each in requested]

    assert [tokens for tokens, _ in beside] == [tokens for tokens, _ in alone]
    assert [found for _, found in beside] == [pytest.approx(p, abs=1e-3) for _, p in alone]
    assert [session.result().tokens for session in sessions] == oracles
    assert len(rejecting.result()[0]) == separate.max_tokens


@pytest.mark.parametrize(
    ("sampling", "extras"),
    [
        (Sampling(), {}),
        (Sampling(temperature=0.8, top_p=0.9), {}),
        (Sampling(top_k=40), {}),
        (Sampling(temperature=1.2, min_p=0.1), {}),
        (Sampling(temperature=0.9, top_p=0.95, top_k=100, min_p=0.02), SHAPE),
        (Sampling(temperature=0.0), SHAPED),
    ],
)
async def test_a_seed_draws_the_same_with_the_drafts_of_an_edge_and_without_an_edge(
    target: VllmTarget, sampling: Sampling, extras: dict[str, Any]
) -> None:
    """With all settings also where a stop token ends the text, which is barred at first."""
    settings = {name: getattr(sampling, name) for name in ("temperature", "top_p", "min_p")}
    stop = tuple(target.facts.stop_tokens) if "min_tokens" in extras else ()
    settings |= {"stop_token_ids": list(stop), "top_k": sampling.top_k, "max_tokens": 40}
    shaped = with_extras(sampling, **extras)

    async def both(seed: int, prompt: str) -> tuple[list[int], list[int]]:
        fields: dict[str, Any] = {"seed": seed, "stop_tokens": stop, "max_tokens": 40}
        request = opening(target, prompt, shaped, **fields)
        expected, _ = await own(target, prompt, seed=seed, **settings, **extras)
        name, script = f"drafted {seed}", Script(wrong=0.2)
        return expected, (await drafted(target, name, request, expected, script)).tokens

    for expected, tokens in await asyncio.gather(*starmap(both, enumerate(PROMPTS))):
        assert tokens == expected


async def test_without_a_seed_each_answer_is_another(target: VllmTarget) -> None:
    request = opening(target, PROMPTS[0], GREEDY)

    session = asyncio.create_task(plain(target, "beside unseeded", request))
    drawn = await asyncio.gather(*(own(target, PROMPTS[0]) for _ in range(3)))

    assert len((await session).tokens) == request.max_tokens
    assert len({tuple(tokens) for tokens, _ in drawn}) == 3


async def test_a_held_session_delays_no_other_request(target: VllmTarget) -> None:
    waiting = opening(target, PROMPTS[0], GREEDY, fill="never")
    session = asyncio.create_task(plain(target, "held", waiting))
    await served(target, 1, 20.0)

    async with asyncio.timeout(GUARD_S):
        found, _ = await own(target, PROMPTS[1], temperature=0.0)

    assert len(found) == 32
    session.cancel()
    await gone(target)


async def test_a_clients_own_extra_argument_of_our_name_makes_no_session(
    target: VllmTarget,
) -> None:
    found, _ = await own(target, PROMPTS[0], temperature=0.0, extra_args={FIELD: "anything"})

    assert len(found) == 32
