"""An edge with a pool predicts what it answered last when the same is asked again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import msgspec
import pytest

from picospec.edge_agent.engine import EdgeEngine
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.speculation import Speculation
from picospec.gateway.ports import Delta, Job
from picospec.speculation.protocol.messages import Commit, Finish, TokenId
from tests.edge_agent.engines import JOB, FakeUplink, deltas, engine
from tests.edge_agent.fakes import ScriptedLink, scripted

ANSWER = tuple(range(100, 112))
KEPT = Speculation(pool_tokens=1000)


class Owner:
    name = "somebody"


ASKED = replace(JOB, prompt=tuple(range(30)), owner=Owner())


async def predicted(
    metrics: EdgeMetrics, job: Job, speculation: Speculation = KEPT
) -> tuple[TokenId, ...]:
    """Have ASKED answered, then another job, and return what is predicted for that one."""
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, speculation=speculation)
    await deltas(edge.generate(ASKED))
    await asked_again(edge, uplink, job)
    assert uplink.opened[0].predicted == ()
    return uplink.opened[1].predicted


async def asked_again(edge: EdgeEngine, uplink: FakeUplink, job: Job) -> list[Delta]:
    uplink.link = ScriptedLink(scripted(Commit(0, 0, ANSWER, own=11), Finish("stop")))
    return await deltas(edge.generate(job))


async def test_the_same_question_has_its_answer_predicted(metrics: EdgeMetrics) -> None:
    assert await predicted(metrics, ASKED) == ANSWER


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, prompt=tuple(range(40, 70))),
        replace(ASKED, owner=Owner()),
        replace(ASKED, owner=None),
    ],
    ids=["another question", "another key", "nobody in particular"],
)
async def test_nothing_else_has(metrics: EdgeMetrics, other: Job) -> None:
    assert await predicted(metrics, other) == ()


@pytest.mark.parametrize(
    "speculation",
    [
        Speculation(),
        replace(KEPT, judge="separate"),
        replace(KEPT, verifier_drafts=False),
    ],
)
async def test_nothing_is_predicted_without_the_setting_or_where_the_verifier_does_not_draft(
    metrics: EdgeMetrics, speculation: Speculation
) -> None:
    assert await predicted(metrics, ASKED, speculation) == ()


async def test_what_the_client_predicts_comes_first(metrics: EdgeMetrics) -> None:
    asked = replace(ASKED, extras={"prediction": "Ishmael"})

    assert bytes(await predicted(metrics, asked)) == b"Ishmael"


async def test_what_the_pool_expects_is_not_counted_as_a_prediction_of_the_clients(
    metrics: EdgeMetrics,
) -> None:
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, speculation=KEPT)
    await deltas(edge.generate(ASKED))

    told = await asked_again(edge, uplink, ASKED)

    assert [d.statistics.accepted_prediction_tokens for d in told if d.statistics] == [0, 0]


async def test_an_answer_that_was_cancelled_is_kept_as_far_as_it_came(
    metrics: EdgeMetrics,
) -> None:
    async def forever(link: ScriptedLink) -> None:
        await asyncio.Event().wait()

    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER[:5]), forever))
    edge = engine(uplink, metrics, speculation=KEPT)
    async with asyncio.timeout(2), aclosing(edge.generate(ASKED)) as stream:
        await anext(stream)

    await asked_again(edge, uplink, ASKED)

    assert uplink.opened[1].predicted == ANSWER[:5]


async def test_another_target_gets_none_of_it(metrics: EdgeMetrics) -> None:
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, speculation=KEPT)
    await deltas(edge.generate(ASKED))
    uplink.known = msgspec.structs.replace(uplink.known, vocabulary="another")

    await asked_again(edge, uplink, ASKED)

    assert uplink.opened[1].predicted == ()


async def test_an_owner_whose_pool_is_emptied_has_nothing_predicted(
    metrics: EdgeMetrics,
) -> None:
    uplink = FakeUplink(scripted(Commit(0, 0, ANSWER), Finish("stop")))
    edge = engine(uplink, metrics, speculation=KEPT)
    await deltas(edge.generate(ASKED))

    edge.forget(ASKED.owner)
    await asked_again(edge, uplink, ASKED)

    assert uplink.opened[1].predicted == ()
