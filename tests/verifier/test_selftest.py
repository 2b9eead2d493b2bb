"""vLLM's self-test, over a target that says what a test wants of it.

Sessions of max_tokens other than TOKENS are those in which passes are timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from speculation.messages import Commit, Draft, Finish, Open, Pushed, TokenLogprob, Totals
from speculation.model_facts import Limits, ModelFacts
from speculation.noise import gumbel, noise_index
from speculation.wire import Framed
from tests.verifier.fake_target import FACTS
from verifier.target import Deliver, Target, TargetFailed
from verifier.vllm_target.serving.selftest import TOKENS, Precision, self_test

MAX_ROWS = 1 + FACTS.limits.max_verify
PRECISION = Precision(near=0.25)


@dataclass
class Scripted:
    """says: the token at a position, given the request and what was drafted for it."""

    says: Callable[[Open, list[int], int], int]
    judges_after: int = 0
    """Draft tokens are judged in sessions after this many."""

    stalls: bool = False
    loses_drafts: bool = False
    offset: float = 9.0
    """Any other token's logit is so much below that of the token that is said."""

    facts: ModelFacts = FACTS
    opened: list[Open] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    pass_s: Callable[[int], float] = lambda rows: 0.01 * rows
    timed: list[int] = field(default_factory=list)
    drafted: asyncio.Queue[Draft] = field(default_factory=asyncio.Queue)

    replies = Target.replies

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        if request.max_tokens != TOKENS:
            deliver(Framed(Commit(0, 0, (1,), pass_s=1000.0)))
            rows = 1 if request.fill == "always" else 1 + len((await self.drafted.get()).tokens)
            self.timed.append(rows)
            deliver(Framed(Commit(0, 1, (1,), pass_s=self.pass_s(rows))))
            await asyncio.Event().wait()
        self.opened.append(request)
        self.drafts = []
        others = tuple((token, -self.offset) for token in range(10))
        for position in range(len(request.committed), TOKENS):
            token = self.says(request, self.drafts, position)
            logprobs = (TokenLogprob(0.0, others),) if request.top_logprobs else None
            deliver(Framed(Commit(0, position, (token,), logprobs=logprobs)))
            await asyncio.sleep(0)  # a draft may come
            if self.stalls:
                await asyncio.Event().wait()
        judged = int(bool(self.drafts) and len(self.opened) > self.judges_after)
        deliver(Framed(Finish("length", Totals(judged=judged))))

    async def push(self, session: str, framed: Framed[Pushed]) -> None:
        message = framed.message
        assert isinstance(message, Draft)
        if self.loses_drafts:
            return
        assert len(message.tokens) <= self.facts.limits.max_ahead
        if session.endswith("-rows"):
            self.drafted.put_nowait(message)
        self.drafts = [0] * message.start + list(message.tokens)


def honest(request: Open, drafts: list[int], position: int) -> int:
    return (request.prompt[0] + position) % 7


def gullible(request: Open, drafts: list[int], position: int) -> int:
    """Says whatever was drafted."""
    return dict(enumerate(drafts)).get(position, 1) if position else 1


async def test_a_target_that_drafts_do_not_change_passes() -> None:
    target = Scripted(honest)

    await self_test(target, PRECISION)

    assert len(target.opened) == 2 * 3
    assert {request.sampling.temperature for request in target.opened} == {0.0, 1.0}


@pytest.mark.parametrize(("dear_from", "largest"), [(9, MAX_ROWS), (3, 3)])
async def test_passes_are_timed_by_their_rows_while_they_are_cheap(
    dear_from: int, largest: int
) -> None:
    target = Scripted(honest, pass_s=lambda rows: 9.0 if rows >= dear_from else 0.01)

    await self_test(target, PRECISION)

    assert target.timed[:3] == [1, 2, 3]
    assert max(target.timed) == largest


async def test_no_more_draft_tokens_are_sent_than_a_session_may_have_ahead() -> None:
    await self_test(
        Scripted(honest, facts=msgspec.structs.replace(FACTS, limits=Limits(max_ahead=4))),
        PRECISION,
    )


def by_rows(request: Open, drafts: list[int], position: int) -> int:
    """Decides some positions of every prompt otherwise in a pass with draft tokens."""
    flips = bool(drafts) and request.sampling.temperature == 0.0 and position in (3, 4, 7)
    return honest(request, drafts, position) + flips


async def test_a_target_whose_kernels_change_with_the_rows_passes_if_near_ties_differ() -> None:
    target = Scripted(by_rows, offset=0.2)

    await self_test(target, PRECISION)

    forced = [len(each.committed) for each in target.opened if each.committed]
    assert forced == [4, 8, 4, 8], "it goes on with the text without draft tokens"


def gains(request: Open, drafts: list[int], position: int) -> int:
    """Says the token with less noise, which no near-tie explains, after a draft."""
    flips = bool(drafts) and request.sampling.temperature > 0.0 and position == 5
    noise = gumbel(request.seed, noise_index(len(request.prompt), position), np.arange(7))
    return int(noise.argmin() if flips else noise.argmax())


ERRORS = {
    "no near-tie": (Scripted(by_rows, offset=0.3), "with right drafts"),
    "what its noise does not explain": (Scripted(gains, offset=0.0), "with right drafts"),
    "wrong drafts that change a text": (Scripted(gullible), "with wrong drafts"),
    "drafts that nobody judges": (Scripted(honest, judges_after=1000), "no draft was judged"),
    "silence": (Scripted(honest, stalls=True), "7-0-plain had 1 commits in 120 s"),
    "a pass that never ends": (
        Scripted(honest, loses_drafts=True),
        "2-rows had 1 commits in 120 s",
    ),
}


@pytest.mark.parametrize(("target", "error"), ERRORS.values(), ids=ERRORS)
async def test_an_error_is(target: Scripted, error: str) -> None:
    with pytest.raises(TargetFailed, match=f"self-test: .*{error}"):
        await self_test(target, PRECISION)


async def test_without_alternatives_one_token_that_differs_is_an_error() -> None:
    with pytest.raises(TargetFailed, match="self-test: with right drafts"):
        await self_test(Scripted(by_rows), Precision(near=0.25, alternatives=0))


async def test_a_busy_machine_that_judged_no_draft_is_measured_and_tried_again() -> None:
    target = Scripted(honest, judges_after=6)

    await self_test(target, PRECISION)

    assert len(target.opened) == 2 * 2 * 3
    half = len(target.timed) // 2
    assert target.timed[:half] == target.timed[half:]
