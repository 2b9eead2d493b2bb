"""No draft changes the text: with the real engine, coupled, greedy and drawn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import cycle

import pytest

from picospec.speculation.messages import Fill, Sampling
from picospec.verifier.vllm_target import conflicts
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE, make
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
)

pytestmark = ON_ENGINE
BLOCK = 128
"""Tokens whose keys vLLM caches together, on CPUs."""

SCRIPTS = {
    "good": Script(),
    "15 % wrong": Script(wrong=0.15),
    "all wrong": Script(wrong=1.0),
    "late": Script(wrong=0.1, late_s=0.12),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_drafts_do_not_change_the_text(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    request = opening(target, PROMPTS[0], sampling)
    expected = (await plain(target, f"plain {name}", request)).tokens

    script = SCRIPTS[name]
    if script.wrong in (0.0, 1.0):  # else how many are judged is this host's speed
        request = replace(request, fill="never")

    answer = await drafted(target, f"drafted {name}", request, expected, script)

    assert answer.tokens == expected
    assert answer.finish is not None
    assert answer.finish.reason == "length"
    assert answer.finish.totals.judged > 0
    assert name != "good" or answer.finish.totals.passes < 15


async def test_a_version_that_is_not_tested_runs_its_self_test_though_it_is_switched_off(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conflicts, "TESTED", ((0, 1), (0, 2)))
    before = (await target.figures())["steps"]

    again = make(target._engine, self_test=False)
    await again.start()

    assert (await target.figures())["steps"] > before
    await again.stop()


async def test_many_sessions_at_once_each_generate_what_they_generate_alone(
    target: VllmTarget,
) -> None:
    fills: list[Fill] = ["always", "auto", "never", "auto"]
    requests = [
        opening(
            target,
            PROMPTS[i % len(PROMPTS)],
            DRAWN if i % 2 else GREEDY,
            seed=i,
            max_tokens=40,
            fill=fills[i % 4],
        )
        for i in range(8)
    ]
    oracles = [
        await plain(target, f"alone {i}", replace(request, fill="always"))
        for i, request in enumerate(requests)
    ]

    answers = await asyncio.gather(
        *(
            drafted(target, f"many {i}", request, oracles[i].tokens, script)
            for i, (request, script) in enumerate(
                zip(requests, cycle(SCRIPTS.values()), strict=False)
            )
        )
    )

    assert [a.tokens for a in answers] == [o.tokens for o in oracles]
    assert (await target.figures())["sessions"] == 0


@pytest.mark.parametrize("name", ["good", "all wrong"])
async def test_a_prompt_whose_keys_are_all_cached_but_one_is_answered_as_before(
    target: VllmTarget, name: str
) -> None:
    request = opening(target, PROMPTS[2] * 20, GREEDY, max_tokens=24)
    request = replace(request, prompt=request.prompt[: BLOCK + 1])
    expected = (await plain(target, f"first {name}", request)).tokens

    again = (await plain(target, f"again {name}", request)).tokens
    answer = await drafted(target, f"cached {name}", request, expected, SCRIPTS[name])

    assert again == expected
    assert answer.tokens == expected


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("edits", [(), (3, 17)], ids=["right", "misleading"])
async def test_the_verifiers_own_draft_tokens_do_not_change_the_text(
    target: VllmTarget, sampling: Sampling, edits: tuple[int, ...]
) -> None:
    request = opening(target, PROMPTS[1], sampling, max_tokens=40)
    name = f"{sampling.temperature} {edits}"
    expected = (await plain(target, f"plain {name}", request)).tokens
    predicted = tuple(5 if at in edits else token for at, token in enumerate(expected))

    asked = replace(request, fill="auto", own_drafts=True, predicted=predicted)
    answer = await plain(target, f"own {name}", asked)

    assert answer.tokens == expected
    assert answer.finish is not None
    assert answer.finish.totals.own > 20
    assert answer.finish.totals.passes < 20
