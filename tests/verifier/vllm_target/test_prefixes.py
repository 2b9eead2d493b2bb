"""What vLLM has read for one tenant it reads again for another, unless they share prefixes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from picospec.speculation.protocol.messages import Sampling
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import ON_ENGINE
from tests.verifier.vllm_target.scripted import opening

pytestmark = ON_ENGINE


@pytest.mark.parametrize("shared", [False, True])
async def test_a_prompt_is_read_once_for_each_tenant(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    llm: Any = target._engine._llm  # type: ignore[union-attr]
    generate, cached = llm.generate, list[int]()

    async def noting(*arguments: object, **named: object) -> AsyncGenerator[Any]:
        async with aclosing(generate(*arguments, **named)) as outputs:
            first = True
            async for output in outputs:
                if first:
                    cached.append(output.num_cached_tokens or 0)
                first = False
                yield output

    monkeypatch.setattr(llm, "generate", noting)
    monkeypatch.setattr(target, "_share_prefixes", shared)
    prompt = tuple(1000 + 200 * shared + i for i in range(200))
    asked = opening(target, "", Sampling(temperature=0.0), max_tokens=2)
    request = replace(asked, prompt=prompt)
    for i, tenant in enumerate(["ann", "ann", "ben"]):
        async with aclosing(target.serve(f"prefix {i}", request, tenant)) as replies:
            async for _ in replies:
                pass

    assert [tokens > 0 for tokens in cached] == [False, True, shared]
