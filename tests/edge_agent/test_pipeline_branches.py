"""While its chain is long enough the edge drafts what would follow another token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from edge_agent.metrics import EdgeMetrics
from speculation.guess import Guess
from speculation.messages import Branch, Commit, Draft, Finish, TokenId
from speculation.pacing import DraftPacing
from tests.edge_agent.fakes import CountingSeat, ScriptedLink, Step, on, quiet, saying
from tests.edge_agent.piped import PROMPT, Edge

CHAIN = (3, 4, 5, 6)
BRANCH = Branch(0, 0, (900, 4, 5, 6, 7))


class UnsureSeat(CountingSeat):
    """Half sure; else the target may say 900. So four guesses make a chain."""

    def __init__(self, *, context_tokens: int = 1000, stuck_in: Sequence[TokenId] = ()) -> None:
        """stuck_in: the step after this context never ends."""
        super().__init__(context_tokens=context_tokens, wait=self._wait_in)
        self.branching = asyncio.Event()
        self._stuck_in = [*PROMPT, *stuck_in]

    async def _wait_in(self, context: Sequence[TokenId]) -> None:
        stuck = len(self._stuck_in) > len(PROMPT) and list(context) == self._stuck_in
        await (asyncio.Event().wait() if stuck else asyncio.sleep(0))
        if 900 in context:
            self.branching.set()

    def guess(self, length: int) -> Guess:
        return Guess(length, 0.5, others=((900, 0.3),))


async def until_branched(link: ScriptedLink) -> None:
    await link.until(BRANCH)


async def run(metrics: EdgeMetrics, *steps: Step, seat: CountingSeat | None = None) -> Edge:
    link = ScriptedLink(saying(*steps, quiet, Finish("stop")))
    edge = Edge(metrics, link, seat or UnsureSeat(), pacing=DraftPacing(branch_tokens=4))
    await edge.run()
    return edge


async def test_branches_follow_a_chain_that_is_long_enough(metrics: EdgeMetrics) -> None:
    edge = await run(metrics, until_branched)

    chain = [m for m in edge.link.sent if isinstance(m, Draft)]
    assert [token for draft in chain for token in draft.tokens] == list(CHAIN)
    assert edge.link.sent[len(chain) :] == [BRANCH, Branch(0, 1, (900, 5, 6, 7, 8))]


async def test_a_branch_that_the_verifier_took_is_not_sent_again(metrics: EdgeMetrics) -> None:
    edge = await run(metrics, until_branched, Commit(1, 0, (900, 4)))

    first = next(m for m in edge.link.sent if m.epoch == 1)
    assert first == Draft(1, 5, 3, (8,), pauses=True)
    assert edge.session.guessed == [900, 4, 5, 6, 7, 8]


async def test_a_branch_that_came_too_late_is_sent_as_the_chain(metrics: EdgeMetrics) -> None:
    edge = await run(metrics, until_branched, Commit(0, 0, (900,)))

    first = next(m for m in edge.link.sent if m.epoch == 1)
    assert first == Draft(1, 1, 0, (4, 5, 6, 7), pauses=True)


KEPT = (Commit(0, 0, (3,)), Commit(0, 1, (4,), pass_s=1.0))
"""From the second on the edge knows that a pass is long; the link here has no length at all."""


async def test_a_branch_that_saves_no_round_trip_is_kept_until_it_is_taken(
    metrics: EdgeMetrics,
) -> None:
    edge = await run(metrics, *KEPT, quiet, Commit(0, 2, (900,)))

    assert not [m for m in edge.link.sent if isinstance(m, Branch)]
    assert [m for m in edge.link.sent if m.epoch == 1] == [
        Draft(1, 3, 0, (6, 7, 8, 9), pauses=True)
    ]
    assert edge.session.guessed == [3, 4, 900, 6, 7, 8, 9]


async def test_a_branch_that_was_kept_is_sent_while_another_has_its_step(
    metrics: EdgeMetrics,
) -> None:
    seat = UnsureSeat(stuck_in=(3, 4, 5, 900))

    edge = await run(metrics, *KEPT, quiet, Commit(0, 2, (900,)), seat=seat)

    assert edge.link.sent[-1] == Draft(1, 3, 0, (6, 7, 8, 9), pauses=True)


async def test_the_chain_goes_before_its_branches(metrics: EdgeMetrics) -> None:
    seat = UnsureSeat()

    await run(metrics, on(seat.branching), Commit(0, 0, CHAIN[:1], accepted=1), seat=seat)

    begun = next(i for i, context in enumerate(seat.contexts) if 900 in context)
    later = [len(context) for context in seat.contexts[begun:] if 900 not in context]
    assert later[0] == len(PROMPT) + len(CHAIN)
    assert len([context for context in seat.contexts[begun:] if 900 in context]) > 1


async def test_no_branch_is_longer_than_the_draft_model_can_read(metrics: EdgeMetrics) -> None:
    seat = UnsureSeat(context_tokens=len(PROMPT) + 5)

    await run(metrics, quiet, seat=seat)

    assert max(map(len, seat.contexts)) < seat.context_tokens
    assert seat.branching.is_set()


async def test_there_are_none_with_branches_of_no_guesses(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(saying(quiet, Finish("stop")))
    seat = UnsureSeat()

    await Edge(metrics, link, seat, pacing=DraftPacing(branch_tokens=0)).run()

    assert link.drafted == list(CHAIN)
    assert not seat.branching.is_set()
