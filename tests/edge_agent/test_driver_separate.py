"""In `separate` a rejected draft token is replaced by the edge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Finish,
    Opened,
    Recovered,
    Reject,
)
from picospec.speculation.sampling.distributions import QuantisedDistribution
from picospec.speculation.sampling.draft_token import DraftToken
from tests.edge_agent.driven import Edge
from tests.edge_agent.fakes import LIMITS, CountingSlot, ScriptedLink


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
