"""What vLLM has read for one tenant it reads again for another, unless they share prefixes."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest

from picospec.speculation.messages import Reused, Sampling
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import opening

pytestmark = ON_ENGINE


@pytest.mark.parametrize("shared", [False, True])
async def test_a_prompt_is_read_once_for_each_tenant(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(target, "_share_prefixes", shared)
    prompt = tuple(1000 + 200 * shared + i for i in range(200))
    asked = opening(target, "", Sampling(temperature=0.0), max_tokens=2)
    request = replace(asked, prompt=prompt)
    reused = list[list[Reused]]()
    for i, tenant in enumerate(["ann", "ann", "ben"]):
        async with aclosing(target.serve(f"prefix {i}", request, tenant)) as replies:
            reused.append([r.message async for r in replies if isinstance(r.message, Reused)])

    assert [len(each) for each in reused] == [0, 1, shared]
