"""A driver whose session is lost goes on with the next one; its draft model never notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import Unavailable
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Opened,
    TokenId,
    Totals,
)
from tests.edge_agent.driven import Edge
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, quiet, scripted, sent


async def lose(_: ScriptedLink) -> None:
    raise Unavailable("the verifier went away")


async def test_the_text_goes_on_and_the_chain_is_sent_again(metrics: EdgeMetrics) -> None:
    first = ScriptedLink(scripted(sent(4), Commit(0, 0, (3, 4), accepted=2), quiet, lose))
    second = ScriptedLink(scripted(sent(4), Commit(0, 2, (5, 6), accepted=2), Finish("stop")))
    edge = Edge(metrics, first, CountingSlot(), later=[second])

    await edge.run()

    assert edge.emitted == [3, 4, 5, 6]
    assert [request.committed for request in edge.sessions.opened] == [(), (3, 4)]
    again = next(m for m in second.sent if isinstance(m, Draft))
    assert (again.start, again.behind, again.tokens[:4]) == (2, 0, (5, 6, 7, 8))
    assert len(asyncio.all_tasks()) == 1


async def test_it_drafts_on_while_no_verifier_is_there(metrics: EdgeMetrics) -> None:
    lost, drafted = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 10:
            await lost.wait()
        if len(context) == 12:
            drafted.set()

    async def losing(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await quiet(link)
        lost.set()
        raise Unavailable("the verifier went away")

    async def slow_to_open(link: ScriptedLink) -> AsyncGenerator[Down]:
        await drafted.wait()
        yield Opened("s2", LIMITS)
        yield Finish("stop")

    later = ScriptedLink(slow_to_open)
    edge = Edge(metrics, ScriptedLink(losing), CountingSlot(wait=wait), later=[later])

    await edge.run()

    assert drafted.is_set()


async def test_a_text_that_is_complete_needs_no_other_verifier(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(scripted(Commit(0, 0, (3, 777), accepted=1), lose))
    edge = Edge(metrics, link, None, stop=777)

    assert await edge.run() == Finish("stop", Totals(1, 1, 1, 0))
    assert edge.emitted == [3, 777]


async def test_sessions_that_are_lost_for_good_are_an_error(metrics: EdgeMetrics) -> None:
    links = [ScriptedLink(scripted(lose)) for _ in range(3)]
    edge = Edge(metrics, links[0], CountingSlot(), later=links[1:])

    with pytest.raises(Unavailable, match="went away"):
        await edge.run()

    assert len(edge.sessions.opened) == 3
    assert len(asyncio.all_tasks()) == 1


async def test_posts_that_fail_lose_the_session_and_not_the_answer(
    metrics: EdgeMetrics,
) -> None:
    class Postless(ScriptedLink):
        async def post(self) -> None:
            await self.until_sent(2)
            raise Unavailable("no way up")

    never = Postless(scripted(lambda _: asyncio.Event().wait()))
    second = ScriptedLink(scripted(Commit(0, 0, (3,)), Finish("stop")))
    edge = Edge(metrics, never, CountingSlot(), later=[second])

    await edge.run()

    assert edge.emitted == [3]
