"""An edge that keeps past answers drafts from them for whoever got them, and nobody else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import msgspec
import pytest

from edge_agent.draft_model.drafter import NoDrafter
from edge_agent.engine import EdgeEngine, Speculation
from edge_agent.metrics import EdgeMetrics
from gateway.ports import Job
from speculation.protocol.messages import Commit, Finish, TokenId
from tests.edge_agent.engines import JOB, FakeUplink, deltas, engine
from tests.edge_agent.fakes import ScriptedLink, quiet, scripted

ANSWER = tuple(range(100, 112))
KEPT = Speculation(past_answers_tokens=1000)


class Owner: ...


ASKED = replace(JOB, owner=Owner())


async def drafted(
    metrics: EdgeMetrics, job: Job, speculation: Speculation = KEPT
) -> list[TokenId]:
    """Have ASKED answered, then another job, and return what was drafted for that one."""
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, NoDrafter(), speculation)
    await deltas(edge.generate(ASKED))
    return await asked_again(edge, uplink, job)


async def asked_again(edge: EdgeEngine, uplink: FakeUplink, job: Job) -> list[TokenId]:
    uplink.link = ScriptedLink(scripted(quiet, Finish("stop")))
    await deltas(edge.generate(job))
    return uplink.link.drafted


async def test_the_same_question_has_its_answer_drafted_at_once(metrics: EdgeMetrics) -> None:
    assert await drafted(metrics, ASKED) == list(ANSWER)


@pytest.mark.parametrize("owner", [Owner(), None])
async def test_nobody_else_has_it_drafted(metrics: EdgeMetrics, owner: Owner | None) -> None:
    assert await drafted(metrics, replace(ASKED, owner=owner)) == []


@pytest.mark.parametrize(
    "speculation", [Speculation(), replace(KEPT, judge="separate"), replace(KEPT, lookup=False)]
)
async def test_only_coupled_judging_with_the_setting_makes_use_of_it(
    metrics: EdgeMetrics, speculation: Speculation
) -> None:
    found = await drafted(metrics, ASKED, speculation)

    assert bool(found) is (speculation.judge == "coupled" and speculation != Speculation())


async def test_an_answer_that_was_cancelled_is_kept_as_far_as_it_came(
    metrics: EdgeMetrics,
) -> None:
    async def forever(link: ScriptedLink) -> None:
        await asyncio.Event().wait()

    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER[:5]), forever))
    edge = engine(uplink, metrics, NoDrafter(), KEPT)
    async with asyncio.timeout(2), aclosing(edge.generate(ASKED)) as stream:
        await anext(stream)

    assert await asked_again(edge, uplink, ASKED) == list(ANSWER[:5])


async def test_another_targets_tokens_are_not_drafted(metrics: EdgeMetrics) -> None:
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, NoDrafter(), KEPT)
    await deltas(edge.generate(ASKED))
    uplink.known = msgspec.structs.replace(uplink.known, vocabulary="another")

    assert await asked_again(edge, uplink, ASKED) == []
