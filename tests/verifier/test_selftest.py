"""vLLM's self-test, over a target that says what a test wants of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import pytest

from picospec.speculation.protocol.messages import (
    Commit,
    Draft,
    Finish,
    ModelFacts,
    Open,
    Pushed,
    Totals,
)
from picospec.speculation.protocol.wire import Framed
from picospec.verifier.target import Reply, TargetFailed
from picospec.verifier.vllm_target.serving import selftest
from picospec.verifier.vllm_target.serving.selftest import PROMPTS, TOKENS, self_test
from tests.verifier.fake_target import FACTS


@dataclass
class Scripted:
    """says: the token at a position, given the request and what was drafted for it."""

    says: Callable[[Open, list[int], int], int]
    judged: int = 1
    stalls: bool = False
    opened: list[Open] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    @property
    def facts(self) -> ModelFacts:
        return FACTS

    async def serve(
        self, session: str, request: Open, tenant: str | None = None
    ) -> AsyncGenerator[Framed[Reply]]:
        self.opened.append(request)
        self.drafts = []
        for position in range(TOKENS):
            token = self.says(request, self.drafts, position)
            yield Framed(Commit(0, position, (token,)))
            if self.stalls:
                await asyncio.Event().wait()
        yield Framed(Finish("length", Totals(judged=self.judged * bool(self.drafts))))

    async def push(self, session: str, framed: Framed[Pushed]) -> None:
        message = framed.message
        assert isinstance(message, Draft)
        self.drafts = [0] * message.start + list(message.tokens)


def honest(request: Open, drafts: list[int], position: int) -> int:
    return (request.prompt[0] + position) % 7


def gullible(request: Open, drafts: list[int], position: int) -> int:
    """Says whatever was drafted."""
    return dict(enumerate(drafts)).get(position, 1) if position else 1


async def test_a_target_that_drafts_do_not_change_passes() -> None:
    target = Scripted(honest)

    await self_test(target)

    assert len(target.opened) == 2 * 3
    assert {request.sampling.temperature for request in target.opened} == {0.0, 1.0}


async def test_a_near_tie_at_one_prompt_is_no_error() -> None:
    def tied(request: Open, drafts: list[int], position: int) -> int:
        flips = bool(drafts) and request.seed == 7 and position == 5
        return honest(request, drafts, position) + flips

    target = Scripted(tied)

    await self_test(target)

    assert len({request.seed for request in target.opened}) == 2


async def test_drafts_that_change_every_text_are_an_error() -> None:
    target = Scripted(gullible)

    with pytest.raises(TargetFailed, match="self-test: with wrong drafts"):
        await self_test(target)

    assert len({request.seed for request in target.opened}) == PROMPTS


async def test_drafts_that_nobody_judges_are_an_error() -> None:
    with pytest.raises(TargetFailed, match="no draft was judged"):
        await self_test(Scripted(honest, judged=0))


async def test_a_target_that_falls_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "WITHIN_S", 0.05)

    with pytest.raises(TargetFailed, match=r"said 1 of 12 tokens in 0\.05 s"):
        await self_test(Scripted(honest, stalls=True))
