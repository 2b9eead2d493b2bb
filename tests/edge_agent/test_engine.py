"""The gateway's port at the edge, over a scripted verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import MappingProxyType

import msgspec
import pytest

from edge_agent.metrics import EdgeMetrics
from edge_agent.speculation import Speculation
from gateway.errors import EngineFault, Unavailable
from gateway.ports import Job, Sampling, Statistics
from speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Opened,
    TokenLogprob,
    Totals,
)
from tests.edge_agent.engines import FACTS, JOB, FakeUplink, OneSlot, Paired, deltas, engine
from tests.edge_agent.fakes import (
    LIMITS,
    ScriptedLink,
    scripted,
)


async def test_the_facts_are_the_verifiers(metrics: EdgeMetrics) -> None:
    facts = await engine(FakeUplink(scripted()), metrics).facts()

    assert (facts.model, facts.context_tokens) == ("big", 512)
    assert facts.stop_tokens == {7}
    assert facts.features == {"logit_bias", "prediction"}


async def test_a_judge_the_verifier_does_not_have_is_a_fault(metrics: EdgeMetrics) -> None:
    edge = engine(FakeUplink(scripted()), metrics, speculation=Speculation(judge="separate"))

    with pytest.raises(EngineFault, match="separate"):
        await edge.facts()


async def test_separate_with_another_vocabulary_is_a_fault_that_names_the_setting(
    metrics: EdgeMetrics,
) -> None:
    uplink, how = FakeUplink(scripted()), Speculation(judge="separate")
    uplink.known = msgspec.structs.replace(FACTS, judges=["coupled", "separate"])
    foreign = engine(uplink, metrics, speculation=how, paired=Paired("different"))

    with pytest.raises(
        EngineFault, match=r"judge: `separate` needs .* the target's vocabulary"
    ):
        await foreign.facts()
    await engine(uplink, metrics, speculation=how).facts()


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
    assert (asked.model, asked.vocabulary, asked.prompt) == ("big", "print", (1, 2))
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
