"""The gateway's port at the edge, over a scripted verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType

import pytest
from edge_agent.pace import Pace
from edge_agent.pipeline import Link

from edge_agent.draft_model.drafter import NoDrafter
from edge_agent.engine import EdgeEngine, Policy
from edge_agent.metrics import EdgeMetrics
from gateway.errors import EngineFault, Unavailable
from gateway.ports import Delta, Job, Sampling, Statistics
from speculation.drafting.policy import DraftSettings
from speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Limits,
    ModelFacts,
    Open,
    Opened,
    TokenId,
    TokenLogprob,
    Totals,
)
from tests.edge_agent.fakes import LIMITS, CountingSeat, ScriptedLink, quiet, saying

FACTS = ModelFacts(
    "big", 1000, "print", 512, [7], "", LIMITS, judges=["coupled"], features=["logit_bias"]
)
JOB = Job("r1", (50, 51, 52), 20, Sampling(temperature=0.5, top_k=3), seed=9)


class FakeUplink:
    rtt_s = 0.01

    def __init__(self, script: Callable[[ScriptedLink], AsyncGenerator[Down]]) -> None:
        self.opened: list[Open] = []
        self.forgotten = 0
        self.link = ScriptedLink(script)

    async def facts(self) -> ModelFacts:
        return FACTS

    def open(self, request: Open) -> Link:
        self.opened.append(request)
        return self.link

    def forget(self) -> None:
        self.forgotten += 1


class OneSeat:
    """A Drafter with one seat."""

    def __init__(self, context_tokens: int = 64) -> None:
        self.seat = CountingSeat(context_tokens=context_tokens)

    def take(self, prompt: Sequence[TokenId]) -> CountingSeat:
        return self.seat

    def close(self) -> None:
        pass


def engine(
    uplink: FakeUplink,
    metrics: EdgeMetrics,
    drafter: OneSeat | NoDrafter | None = None,
    policy: Policy | None = None,
) -> EdgeEngine:
    return EdgeEngine(
        uplink, drafter or OneSeat(), policy or Policy(), metrics, vocabulary="mine"
    )


async def deltas(stream: AsyncGenerator[Delta]) -> list[Delta]:
    async with asyncio.timeout(2):
        return [delta async for delta in stream]


async def test_the_facts_are_the_verifiers(metrics: EdgeMetrics) -> None:
    facts = await engine(FakeUplink(saying()), metrics).facts()

    assert (facts.model, facts.context_tokens) == ("big", 512)
    assert facts.stop_tokens == {7}
    assert facts.features == {"logit_bias"}


async def test_a_judge_the_verifier_does_not_have_is_a_fault(metrics: EdgeMetrics) -> None:
    edge = engine(FakeUplink(saying()), metrics, policy=Policy(judge="separate"))

    with pytest.raises(EngineFault, match="separate"):
        await edge.facts()


async def test_the_session_asks_for_what_the_job_says(metrics: EdgeMetrics) -> None:
    uplink = FakeUplink(saying(Finish("stop")))
    job = Job(
        "r",
        (1, 2),
        20,
        Sampling(0.5, 0.1, 3, 0.9),
        9,
        4,
        MappingProxyType({"logit_bias": {"5": 1}}),
    )

    await deltas(engine(uplink, metrics).generate(job))

    (asked,) = uplink.opened
    assert (asked.model, asked.vocabulary, asked.prompt) == ("big", "mine", (1, 2))
    assert (asked.seed, asked.max_tokens, asked.stop_tokens) == (9, 20, (7,))
    told = asked.sampling
    assert (told.temperature, told.min_p, told.top_k, told.top_p) == (0.5, 0.1, 3, 0.9)
    assert bytes(told.extras["logit_bias"]) == b'{"5":1}'
    assert (asked.judge, asked.fill, asked.top_logprobs) == ("coupled", "auto", 4)


async def test_statistics_grow_and_the_finish_sets_them_right(metrics: EdgeMetrics) -> None:
    script = saying(
        Commit(0, 0, (3, 4, 90), accepted=2, pass_s=0.1),
        Commit(0, 3, (91,), pass_s=0.1),
        Finish("length", Totals(passes=3, judged=6, accepted=2, filled=1)),
    )

    said = await deltas(engine(FakeUplink(script), metrics).generate(JOB))

    assert [delta.tokens for delta in said] == [(3, 4, 90), (91,), ()]
    assert said[1].statistics == Statistics(2, 1, 2, 2, (1, 1))
    assert said[2].finish == "length"
    assert said[2].statistics == Statistics(3, 2, 6, 2, (1, 1))


async def test_log_probabilities_are_passed_on(metrics: EdgeMetrics) -> None:
    logprobs = (TokenLogprob(-0.5, ((3, -0.5), (4, -2.0))),)
    script = saying(Commit(0, 0, (3,), logprobs=logprobs), Finish("length"))
    job = Job("r", (1,), 1, Sampling(), 9, top_logprobs=2)

    said = await deltas(engine(FakeUplink(script), metrics).generate(job))

    assert said[0].logprobs is not None
    assert said[0].logprobs[0].top == ((3, -0.5), (4, -2.0))


async def test_the_seat_is_left_at_the_end_and_on_an_error(metrics: EdgeMetrics) -> None:
    async def dying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        raise Unavailable("gone")

    well, ill = OneSeat(), OneSeat()
    await deltas(engine(FakeUplink(saying(Finish("stop"))), metrics, well).generate(JOB))
    uplink = FakeUplink(dying)
    with pytest.raises(Unavailable):
        await deltas(engine(uplink, metrics, ill).generate(JOB))

    assert (well.seat.left, ill.seat.left) == (1, 1)
    assert uplink.forgotten == 1


async def test_closing_early_cancels_the_session_and_leaves_no_task(
    metrics: EdgeMetrics,
) -> None:
    async def endless(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (3,))
        await asyncio.Event().wait()

    uplink, drafter = FakeUplink(endless), OneSeat()
    stream = engine(uplink, metrics, drafter).generate(JOB)

    async with asyncio.timeout(2), aclosing(stream):
        await anext(stream)

    assert uplink.link.cancelled == 1
    assert drafter.seat.left == 1
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("drafter", "max_tokens", "fill"),
    [(OneSeat(), 20, "never"), (OneSeat(), 100, "auto"), (NoDrafter(), 20, "auto")],
    ids=["a seat", "a seat that cannot hold the answer", "no seat"],
)
async def test_only_where_every_token_can_be_drafted_the_verifier_may_wait_for_drafts(
    metrics: EdgeMetrics, drafter: OneSeat | NoDrafter, max_tokens: int, fill: str
) -> None:
    uplink = FakeUplink(saying(Finish("stop")))
    job = Job("r", (1, 2), max_tokens, Sampling(), 9)

    paces: list[Pace] = []

    def make_pace(pacing: DraftSettings, limits: Limits, rtt_s: Callable[[], float]) -> Pace:
        paces.append(Pace(pacing, limits, rtt_s))
        return paces[0]

    edge = EdgeEngine(
        uplink, drafter, Policy(fill="never"), metrics, vocabulary="", make_pace=make_pace
    )
    await deltas(edge.generate(job))

    assert uplink.opened[0].fill == fill
    assert paces[0].pacing.rests is (fill != "never")  # a rest would have both ends wait


@pytest.mark.parametrize(
    ("policy", "looks_up"),
    [(Policy(), True), (Policy(lookup=False), False), (Policy(judge="separate"), False)],
)
async def test_without_a_seat_it_looks_up_what_was_said_unless_told_not_to(
    metrics: EdgeMetrics, policy: Policy, looks_up: bool
) -> None:
    uplink = FakeUplink(saying(Commit(0, 0, (51, 52, 53)), quiet, Finish("stop")))
    job = Job("r1", (51, 52, 53, 54, 55, 56), 20, Sampling(temperature=0.5), seed=9)

    await deltas(engine(uplink, metrics, NoDrafter(), policy).generate(job))

    assert (uplink.link.drafted[:3] == [54, 55, 56]) is looks_up
    assert (metrics.looked_up._value.get() > 0) is looks_up


async def test_an_answer_begins_with_what_the_last_one_learned_of_the_verifier(
    metrics: EdgeMetrics,
) -> None:
    right = (
        step
        for at in range(60)
        for step in (Commit(0, at, (len(JOB.prompt) + at,), pass_s=0.1), quiet)
    )
    script = saying(*right, Finish("length"))
    drafter = OneSeat(context_tokens=200)
    edge = engine(FakeUplink(script), metrics, drafter)
    job = replace(JOB, max_tokens=60)

    await deltas(edge.generate(job))
    first = len(drafter.seat.contexts)
    await deltas(edge.generate(job))

    assert len(drafter.seat.contexts) - first < first / 2  # nobody took its guesses: it rests
