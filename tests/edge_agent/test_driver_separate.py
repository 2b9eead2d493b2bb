"""In `separate` a rejected draft token is replaced by the edge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from picospec.edge_agent.link.upstream_errors import LinkDown
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Opened,
    Recovered,
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
        yield Reject(0, 0, 0, ((5, 1.0),), 0.0)
        assert Recovered(1, 0, 5) in link.sent
        yield Commit(1, 0, (5,))
        yield Finish("stop")

    edge = Edge(metrics, ScriptedLink(rejecting), DrawingSlot(), separate=True)
    await edge.run()

    assert edge.emitted == [5]


async def test_samples_that_were_awaited_of_a_lost_verifier_come_from_the_next(
    metrics: EdgeMetrics,
) -> None:
    async def losing(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Reject(0, 1, 0, (), 1.0)
        assert link.sent[-1] == Redraw(0, 1, 1)
        raise LinkDown("cut")

    later = ScriptedLink(
        scripted(sent(1), Reject(0, 1, 0, (), 1.0, ((5, 1.0),)), Finish("stop"))
    )
    edge = Edge(metrics, ScriptedLink(losing), DrawingSlot(), separate=True, later=[later])
    await edge.run()

    reopened = edge.sessions.opened[1]
    assert (reopened.committed, reopened.rejected) == ((1,), True)
    assert Recovered(1, 1, 5) in later.sent
    assert edge.emitted == [1, 5]
