"""In `separate` each draft token is sent by itself, and a rejected one is replaced."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Opened,
    Pushed,
    Redraw,
    Reject,
)
from picospec.speculation.sampling.distributions import QuantisedDistribution
from picospec.speculation.sampling.draft_token import DraftToken
from tests.edge_agent.driven import Edge
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink, scripted, sent


class DrawingSlot(CountingSlot):
    """Drafts token 1, with confidence 1; its distribution also has token 2."""

    def draft(self, length: int) -> DraftToken:
        return DraftToken(1, 1.0, QuantisedDistribution(np.array([1, 2]), np.array([65535, 1])))


async def test_after_a_rejection_the_recovered_token_is_sent_at_once(
    metrics: EdgeMetrics,
) -> None:
    async def rejecting(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Reject(0, 0, ((5, 1.0),), 0.0)
        assert link.sent[-1] == Draft(1, 0, 0, (5,), (), forced=True)
        yield Commit(1, 0, (5,))
        yield Finish("stop")

    edge = Edge(metrics, ScriptedLink(rejecting), DrawingSlot(), separate=True)
    await edge.run()

    assert edge.emitted == [5]


async def test_more_of_the_tail_is_asked_for_when_it_runs_out(metrics: EdgeMetrics) -> None:
    asked: list[Pushed] = []

    async def brief(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(1)
        yield Reject(0, 0, (), 1.0, ())
        asked.append(link.sent[-1])
        yield Reject(1, 0, (), 1.0, ((5, 0.5),))
        asked.append(link.sent[-1])
        yield Finish("stop")

    await Edge(metrics, ScriptedLink(brief), DrawingSlot(), separate=True).run()

    assert asked == [Redraw(1, 0), Draft(2, 0, 0, (5,), (), forced=True)]


async def test_in_separate_every_draft_token_is_sent_by_itself(metrics: EdgeMetrics) -> None:
    script = scripted(sent(6), Finish("stop"))
    link = ScriptedLink(script)
    await Edge(metrics, link, DrawingSlot(), separate=True).run()

    assert {m.tokens for m in link.sent if isinstance(m, Draft)} == {(1,)}
