"""The gateway's port at the edge, over a scripted verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft_model.drafter import NoDrafter
from edge_agent.driver import Link
from edge_agent.engine import EdgeEngine, Speculation
from edge_agent.metrics import EdgeMetrics
from gateway.errors import EngineFault, Unavailable
from gateway.ports import Delta, Job, Sampling, Statistics
from speculation.drafting.session import DraftingSession
from speculation.proposing.latencies import Latencies
from speculation.protocol.messages import (
    Commit,
    Down,
    Fill,
    Finish,
    Limits,
    ModelFacts,
    Open,
    Opened,
    TokenId,
    TokenLogprob,
    Totals,
)
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, let, on, quiet, scripted

FACTS = ModelFacts(
    "big", 1000, "print", 512, [7], "", LIMITS, judges=["coupled"], features=["logit_bias"]
)
STEPS = "picospec:edge_draft_step_seconds"
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


class OneSlot:
    """A Drafter with one slot."""

    def __init__(self, context_tokens: int = 64) -> None:
        self.slot = CountingSlot(context_tokens=context_tokens)

    def take(self, prompt: Sequence[TokenId]) -> CountingSlot:
        return self.slot

    def close(self) -> None:
        pass


def engine(
    uplink: FakeUplink,
    metrics: EdgeMetrics,
    drafter: OneSlot | NoDrafter | None = None,
    speculation: Speculation | None = None,
) -> EdgeEngine:
    return EdgeEngine(
        uplink, drafter or OneSlot(), speculation or Speculation(), metrics, vocabulary="mine"
    )


async def deltas(stream: AsyncGenerator[Delta]) -> list[Delta]:
    async with asyncio.timeout(2):
        return [delta async for delta in stream]


async def test_the_facts_are_the_verifiers(metrics: EdgeMetrics) -> None:
    facts = await engine(FakeUplink(scripted()), metrics).facts()

    assert (facts.model, facts.context_tokens) == ("big", 512)
    assert facts.stop_tokens == {7}
    assert facts.features == {"logit_bias"}


async def test_a_judge_the_verifier_does_not_have_is_a_fault(metrics: EdgeMetrics) -> None:
    edge = engine(FakeUplink(scripted()), metrics, speculation=Speculation(judge="separate"))

    with pytest.raises(EngineFault, match="separate"):
        await edge.facts()


async def test_the_session_asks_for_what_the_job_wants(metrics: EdgeMetrics) -> None:
    uplink = FakeUplink(scripted(Finish("stop")))
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
    wanted = asked.sampling
    assert (wanted.temperature, wanted.min_p, wanted.top_k, wanted.top_p) == (0.5, 0.1, 3, 0.9)
    assert bytes(wanted.extras["logit_bias"]) == b'{"5":1}'
    assert (asked.judge, asked.fill, asked.top_logprobs) == ("coupled", "auto", 4)


async def test_statistics_grow_and_the_finish_sets_them_right(metrics: EdgeMetrics) -> None:
    script = scripted(
        Commit(0, 0, (3, 4, 90), accepted=2, pass_s=0.1),
        Commit(0, 3, (91,), pass_s=0.1),
        Finish("length", Totals(passes=3, judged=6, accepted=2, filled=1)),
    )

    received = await deltas(engine(FakeUplink(script), metrics).generate(JOB))

    assert [delta.tokens for delta in received] == [(3, 4, 90), (91,), ()]
    assert received[1].statistics == Statistics(2, 1, 2, 2, (1, 1))
    assert received[2].finish == "length"
    assert received[2].statistics == Statistics(3, 2, 6, 2, (1, 1))


async def test_log_probabilities_are_passed_on(metrics: EdgeMetrics) -> None:
    logprobs = (TokenLogprob(-0.5, ((3, -0.5), (4, -2.0))),)
    script = scripted(Commit(0, 0, (3,), logprobs=logprobs), Finish("length"))
    job = Job("r", (1,), 1, Sampling(), 9, top_logprobs=2)

    received = await deltas(engine(FakeUplink(script), metrics).generate(job))

    assert received[0].logprobs is not None
    assert received[0].logprobs[0].top == ((3, -0.5), (4, -2.0))


async def test_the_slot_is_left_at_the_end_and_on_an_error(metrics: EdgeMetrics) -> None:
    async def dying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        raise Unavailable("gone")

    well, ill = OneSlot(), OneSlot()
    await deltas(engine(FakeUplink(scripted(Finish("stop"))), metrics, well).generate(JOB))
    uplink = FakeUplink(dying)
    with pytest.raises(Unavailable):
        await deltas(engine(uplink, metrics, ill).generate(JOB))

    assert (well.slot.left, ill.slot.left) == (1, 1)
    assert uplink.forgotten == 1


async def test_closing_early_cancels_the_session_and_leaves_no_task(
    metrics: EdgeMetrics,
) -> None:
    async def endless(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (3,))
        await asyncio.Event().wait()

    uplink, drafter = FakeUplink(endless), OneSlot()
    stream = engine(uplink, metrics, drafter).generate(JOB)

    async with asyncio.timeout(2), aclosing(stream):
        await anext(stream)

    assert uplink.link.cancelled == 1
    assert drafter.slot.left == 1
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("drafter", "max_tokens", "fill"),
    [(OneSlot(), 20, "never"), (OneSlot(), 100, "auto"), (NoDrafter(), 20, "auto")],
    ids=["a slot", "a slot that cannot hold the answer", "no slot"],
)
async def test_only_where_every_token_can_be_drafted_the_verifier_may_wait_for_drafts(
    metrics: EdgeMetrics, drafter: OneSlot | NoDrafter, max_tokens: int, fill: str
) -> None:
    uplink = FakeUplink(scripted(Finish("stop")))
    job = Job("r", (1, 2), max_tokens, Sampling(), 9)

    edge = engine(uplink, metrics, drafter, Speculation(fill="never"))
    await deltas(edge.generate(job))

    assert uplink.opened[0].fill == fill


@pytest.mark.parametrize("fill", ["never", "auto"])
async def test_where_the_verifier_waits_for_drafts_the_edge_never_rests(
    metrics: EdgeMetrics, fill: Fill
) -> None:
    misses = (step for at in range(60) for step in (Commit(0, at, (900,), pass_s=0.1), quiet))
    uplink, drafter = FakeUplink(scripted(*misses, Finish("length"))), OneSlot(200)
    edge = engine(uplink, metrics, drafter, Speculation(fill=fill))

    await deltas(edge.generate(replace(JOB, max_tokens=60)))

    chains = len({message.epoch for message in uplink.link.sent})
    assert (chains >= 59) is (fill == "never")  # a rest would have both ends wait


async def test_no_more_is_drafted_than_the_slot_can_hold_besides_the_prompt(
    metrics: EdgeMetrics,
) -> None:
    uplink = FakeUplink(scripted(quiet, Finish("stop")))

    await deltas(engine(uplink, metrics, OneSlot(len(JOB.prompt) + 2)).generate(JOB))

    assert uplink.link.drafted == [3, 4]


async def test_another_policy_replaces_the_products_own(metrics: EdgeMetrics) -> None:
    class OneToken:
        def may_draft(self, session: DraftingSession, *_: Latencies | Limits) -> bool:
            return not session.chain

        def may_look_up(self, session: DraftingSession, *_: Latencies | Limits) -> bool:
            return False

        def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
            return session.unsent > 0

    uplink = FakeUplink(scripted(quiet, Commit(0, 0, (3,)), quiet, Finish("stop")))
    edge = engine(uplink, metrics, speculation=Speculation(policy=OneToken()))

    await deltas(edge.generate(JOB))

    assert uplink.link.drafted == [3, 4]


async def test_draft_tokens_and_stale_steps_are_counted_at_the_end() -> None:
    metrics = EdgeMetrics(registry := CollectorRegistry())
    landed, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 5:
            stepping.set()
            await landed.wait()

    script = scripted(on(stepping), Commit(0, 0, (99,)), let(landed), quiet, Finish("stop"))
    drafter = OneSlot()
    drafter.slot = CountingSlot(wait=wait)

    await deltas(engine(FakeUplink(script), metrics, drafter).generate(JOB))

    assert metrics.stale._value.get() == 1
    assert metrics.accepted._value.get() == 0
    drafted = metrics.drafted._value.get()
    assert drafted == metrics.wasted._value.get() > 2
    assert len(drafter.slot.contexts) == drafted + 1
    assert registry.get_sample_value(f"{STEPS}_count") == drafted + 1


@pytest.mark.parametrize(
    ("speculation", "looks_up"),
    [
        (Speculation(), True),
        (Speculation(lookup=False), False),
        (Speculation(judge="separate"), False),
    ],
)
async def test_without_a_slot_it_looks_up_repeated_text_unless_told_not_to(
    metrics: EdgeMetrics, speculation: Speculation, looks_up: bool
) -> None:
    uplink = FakeUplink(scripted(Commit(0, 0, (51, 52, 53)), quiet, Finish("stop")))
    job = Job("r1", (51, 52, 53, 54, 55, 56), 20, Sampling(temperature=0.5), seed=9)

    await deltas(engine(uplink, metrics, NoDrafter(), speculation).generate(job))

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
    script = scripted(*right, Finish("length"))
    drafter = OneSlot(context_tokens=200)
    edge = engine(FakeUplink(script), metrics, drafter)
    job = replace(JOB, max_tokens=60)

    await deltas(edge.generate(job))
    first = len(drafter.slot.contexts)
    await deltas(edge.generate(job))

    assert len(drafter.slot.contexts) - first < first / 2  # no pass took its drafts: it rests
