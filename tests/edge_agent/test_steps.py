"""A step reads ahead what was said before, and what it takes is learned from it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from edge_agent.pace import Pace
from edge_agent.steps import Guesser, Steps

from edge_agent.metrics import EdgeMetrics
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup
from speculation.protocol.messages import Commit, Sampling, TokenId
from speculation.sampling import draft_sampler as guessing
from tests.edge_agent.fakes import LIMITS, CountingSeat

PROMPT = (*range(20, 36), 9, 9, 9, 9)
"""As long as its first token, so that CountingSeat says it again."""

STEP_S, READ_S = 0.01, 0.002
"""Of the draft model: a step, and each token that it reads besides."""


class Desk:
    def __init__(
        self,
        metrics: EdgeMetrics,
        *,
        max_tokens: int = 100,
        prompt: tuple[TokenId, ...] = PROMPT,
    ) -> None:
        self.session = DraftingSession(max_tokens=max_tokens, stop_tokens=())
        self.pace = Pace(DraftSettings(), LIMITS, lambda: 0.0)
        self.lookup = Lookup(prompt)
        self.seat = CountingSeat(wait=self._meanwhile)
        self.now_s = 0.0
        self.news: list[Commit] = []
        """What comes while steps run, one a step."""

        pick = guessing.coupled(Sampling(), 0, len(prompt))
        self.steps = Steps(
            self.session,
            Guesser(self.seat, pick, prompt),
            self.pace,
            metrics,
            lookup=self.lookup,
            clock=lambda: self.now_s,
        )

    async def _meanwhile(self, context: Sequence[TokenId]) -> None:
        await asyncio.sleep(0)
        self.now_s += STEP_S + READ_S * (len(self.seat.contexts[-1]) - len(context))
        if self.news:
            self.session.receive(self.news.pop())

    async def extend(self, times: int = 1) -> None:
        for _ in range(times):
            await self.steps.extend()

    @property
    def chain(self) -> list[TokenId]:
        return [guess.token for guess in self.session.chain]


async def test_three_tokens_said_before_are_enough_to_read_what_followed(
    metrics: EdgeMetrics,
) -> None:
    desk = Desk(metrics)

    await desk.extend(3)
    assert desk.chain == [20, 21, 22]
    await desk.extend()

    assert desk.seat.contexts[-1] == [*PROMPT, 20, 21, 22, 23, 24, 25]
    assert desk.chain == [20, 21, 22, 23, 24, 25, 26]
    assert (desk.steps.drafted, desk.steps.looked_up) == (7, 0)


async def test_what_was_said_before_is_read_in_vain_where_the_draft_model_says_another(
    metrics: EdgeMetrics,
) -> None:
    desk = Desk(metrics, prompt=(*range(20, 24), 99, *range(25, 36), 9, 9, 9, 9))

    await desk.extend(4)

    assert desk.seat.contexts[-1][-3:] == [23, 99, 25]
    assert desk.chain == [20, 21, 22, 23, 24]


async def test_a_drafts_time_is_that_of_steps_that_read_one_token(metrics: EdgeMetrics) -> None:
    desk = Desk(metrics)

    await desk.extend()
    assert desk.pace.times.draft_s == 0.0  # the prompt's step
    await desk.extend(3)

    assert desk.pace.times.draft_s == pytest.approx(STEP_S)
    assert desk.lookup._read_s == pytest.approx(READ_S)


async def test_what_was_read_but_had_no_room_is_not_taken_for_read_again(
    metrics: EdgeMetrics,
) -> None:
    desk = Desk(metrics)
    while desk.steps.due:
        await desk.extend()
    read_s = desk.lookup._read_s
    desk.session.receive(Commit(0, 0, tuple(desk.chain[:1])))

    await desk.extend()  # reads ahead 15, of which one has room

    assert len(desk.seat.contexts[-1]) == len(PROMPT) + LIMITS.max_ahead + 15
    assert desk.lookup._read_s == pytest.approx(read_s)


async def test_after_a_break_a_step_tells_no_times(metrics: EdgeMetrics) -> None:
    desk = Desk(metrics)
    await desk.extend(4)
    desk.session.receive(Commit(0, 0, (20, 5)))
    desk.now_s += 9.9

    await desk.extend()

    assert desk.session.epoch == 1
    assert desk.pace.times.draft_s == pytest.approx(STEP_S)
    assert desk.lookup._read_s == pytest.approx(READ_S)


async def test_guesses_of_a_chain_that_broke_meanwhile_are_all_dropped(
    metrics: EdgeMetrics,
) -> None:
    desk = Desk(metrics)
    await desk.extend(3)
    desk.news.append(Commit(0, 0, (20, 5)))

    await desk.extend()

    assert (desk.chain, desk.steps.drafted) == ([], 3)


async def test_guesses_that_were_confirmed_meanwhile_are_no_hindrance(
    metrics: EdgeMetrics,
) -> None:
    desk = Desk(metrics)
    await desk.extend(3)
    desk.news.append(Commit(0, 0, (20, 21)))

    await desk.extend()

    assert desk.chain == [22, 23, 24, 25, 26]


@pytest.mark.parametrize(("max_tokens", "most"), [(100, LIMITS.max_ahead), (9, 9)])
async def test_no_step_goes_beyond_what_may_be_away_or_said(
    metrics: EdgeMetrics, max_tokens: int, most: int
) -> None:
    desk = Desk(metrics, max_tokens=max_tokens)

    while desk.steps.due:
        await desk.extend()

    assert len(desk.chain) == most
