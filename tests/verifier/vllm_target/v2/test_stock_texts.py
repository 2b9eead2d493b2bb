"""The text of every session is the one that `vllm serve` itself gives with that seed."""

from __future__ import annotations

import asyncio
from itertools import cycle

import pytest

from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import Answer, Script, drafted, plain
from tests.verifier.vllm_target.v2.cases import CASES, MAX_TOKENS, Text, session

pytestmark = ON_ENGINE
SCRIPTS = (
    Script(late_s=0.05, at_once=True),
    Script(wrong=1.0, late_s=0.05, at_once=True),
    Script(wrong=0.15, window=5),
    Script(window=2),
    Script(wrong=0.1, late_s=0.2),
    Script(wrong=0.4, window=8),
    Script(window=1),
)
Texts = dict[tuple[str, int], Text]


@pytest.mark.parametrize("name", CASES)
async def test_eight_sessions_of_different_drafts_at_once(
    target: VllmTarget, texts: Texts, name: str
) -> None:
    async def run(i: int, script: Script) -> Answer:
        number = i % 3
        fill = "never" if i < 2 else "auto"  # `never`: each pass judges a draft token
        request = session(target.facts, name, number, fill=fill, top_logprobs=2)
        oracle = texts[name, number].tokens
        return await drafted(target, f"{name} {i}", request, oracle, script)

    alone = plain(target, f"{name} alone", session(target.facts, name, 1))
    several = [run(i, script) for i, script in zip(range(7), cycle(SCRIPTS), strict=False)]
    bare, *answers = await asyncio.gather(alone, *several)

    assert bare.tokens == texts[name, 1].tokens
    assert [a.tokens for a in answers] == [texts[name, i % 3].tokens for i in range(7)]
    for i, answer in enumerate(answers):
        assert [each.logprob for each in answer.logprobs] == pytest.approx(
            texts[name, i % 3].logprobs, abs=1e-3
        )
    right, wrong = (answer.finish and answer.finish.totals for answer in answers[:2])
    assert right
    assert right.accepted == right.judged > len(answers[0].tokens) // 3
    assert wrong
    assert (wrong.accepted, wrong.judged > 0) == (0, True)


async def test_each_setting_changes_the_text_of_some_prompt(texts: Texts) -> None:
    said = [tuple(tuple(texts[name, i].tokens) for i in range(3)) for name in CASES]

    assert len(set(said)) == len(CASES)
    assert len(texts["T=1", 0].tokens) == MAX_TOKENS
