"""vLLM's own requests beside sessions: they generate what they generate alone, and a session
with the same seed and settings says the same."""

from __future__ import annotations

import asyncio
from itertools import count, starmap
from random import Random
from typing import Any

import pytest

from speculation.messages import Sampling
from tests.guards import GUARD_S
from tests.verifier.vllm_target.conftest import ON_ENGINE
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
    served,
    with_extras,
)
from verifier.vllm_target.ipc_messages import FIELD
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
NUMBERS = count()
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
    text = {"prompt_token_ids": list(target.tokenizer.encode(prompt))}
    outputs = target._engine._llm.generate(text, asked, f"own {next(NUMBERS)}")
    (done,) = [output.outputs[0] async for output in outputs]
    pairs = zip(done.token_ids, done.logprobs or (), strict=False)
    return list(done.token_ids), [known[token].logprob for token, known in pairs]


async def test_requests_beside_sessions_generate_what_they_generate_alone(
    target: VllmTarget,
) -> None:
    pairs = [(PROMPTS[i % len(PROMPTS)], asked) for i, asked in enumerate(OWN.values())]
    alone = [await own(target, prompt, **asked) for prompt, asked in pairs]
    requests = [opening(target, PROMPTS[i], (GREEDY, DRAWN)[i % 2]) for i in range(4)]
    oracles = [(await plain(target, f"oracle {i}", r)).tokens for i, r in enumerate(requests)]
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
