"""The driver moves tokens; a fake slot and fake links are all it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from edge_agent.draft.drafter import CannotDraft
from gateway.errors import EngineFault, Unavailable
from speculation.distributions import QuantisedDistribution
from speculation.draft_token import DraftToken
from speculation.messages import Commit, Draft, Finish, Recovered, Reject, Totals
from speculation.model_facts import TokenId
from tests.edge_agent.fakes import (
    OPENED,
    STOP,
    CountingSlot,
    Edge,
    ScriptedLink,
    commits,
    let,
    on,
    quiet,
    scripted,
    sent,
    unopened,
)


async def test_tokens_come_out_in_order_and_no_task_is_left() -> None:
    link = ScriptedLink(scripted(*commits(range(3, 23), size=3)))
    edge = Edge(link, slot=CountingSlot(), max_tokens=20)

    finish = await edge.run()

    assert finish == Finish("length")
    assert edge.emitted == list(range(3, 23))
    assert len(asyncio.all_tasks()) == 1
    assert not link.posting


async def test_it_drafts_before_the_session_is_open() -> None:
    commit = Commit(0, 0, (3,), accepted=1)
    link = ScriptedLink(unopened(sent(8), OPENED, commit, Finish("stop")))

    await Edge(link, slot=CountingSlot()).run()

    assert link.drafted[:8] == list(range(3, 11))


async def test_a_draft_model_that_fails_leaves_the_rest_to_the_verifier() -> None:
    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 4:
            raise CannotDraft("no room")

    link = ScriptedLink(scripted(quiet, *commits([3, 90, 91, 92])))
    edge = Edge(link, slot=CountingSlot(wait=wait))

    await edge.run()

    assert link.drafted == [3]
    assert edge.emitted == [3, 90, 91, 92]


async def test_it_drafts_on_while_a_slow_client_takes_what_was_committed() -> None:
    script = scripted(sent(16), Commit(0, 0, (3, 4), accepted=2), Finish("stop"))
    link = ScriptedLink(script)

    class Slow(Edge):
        async def emit(self, commit: Commit) -> None:
            await link.until_sent(18)

    await Slow(link, slot=CountingSlot()).run()

    assert link.drafted[:18] == list(range(3, 21))


async def test_a_verifier_that_breaks_the_protocol_is_a_fault() -> None:
    link = ScriptedLink(scripted(Commit(0, 5, (1,))))

    with pytest.raises(EngineFault, match="broke the protocol"):
        await Edge(link).run()


async def test_what_followed_before_is_read_in_the_step_that_drafts() -> None:
    prompt = (*range(8, 16), 1, 2)  # as long as the repeated text begins
    link = ScriptedLink(scripted(sent(9), Finish("stop")))
    slot = CountingSlot(wait=lambda _: asyncio.sleep(0.001))
    edge = Edge(link, slot=slot, prompt=prompt, lookup=True)

    await edge.run()

    assert max(map(len, slot.contexts)) > len(prompt) + len(slot.contexts)
    assert edge.machine.counts.drafted > len(slot.contexts)


class DrawingSlot(CountingSlot):
    """Drafts token 1, with confidence 1; its distribution also has token 2."""

    def draft(self, length: int) -> DraftToken:
        return DraftToken(1, 1.0, QuantisedDistribution(np.array([1, 2]), np.array([65535, 1])))


async def test_in_separate_the_recovered_token_is_sent_at_once() -> None:
    async def is_recovered(link: ScriptedLink) -> None:
        assert Recovered(1, 0, 5) in link.sent

    rejecting = sent(2), Reject(0, 0, 0, ((5, 1.0),), 0.0), is_recovered, Commit(1, 0, (5,))
    edge = Edge(
        ScriptedLink(scripted(*rejecting, Finish("stop"))), slot=DrawingSlot(), separate=True
    )

    await edge.run()

    assert edge.emitted == [5]


# --- sessions that are lost


async def lose(_: ScriptedLink) -> None:
    raise Unavailable("the verifier went away")


class Postless(ScriptedLink):
    """A link whose way up fails, and whose way down brings nothing."""

    def __init__(self) -> None:
        super().__init__(scripted(on(asyncio.Event())))

    async def post(self) -> None:
        await self.until_sent(2)
        raise Unavailable("the verifier went away")


async def test_the_text_goes_on_and_the_chain_is_sent_again() -> None:
    first = ScriptedLink(scripted(sent(4), Commit(0, 0, (3, 4), accepted=2), quiet, lose))
    second = ScriptedLink(scripted(sent(4), Commit(0, 2, (5, 6), accepted=2), Finish("stop")))
    edge = Edge(first, second, slot=CountingSlot())

    await edge.run()

    assert edge.emitted == [3, 4, 5, 6]
    assert [request.committed for request in edge.sessions.opened] == [(), (3, 4)]
    again = next(m for m in second.sent if isinstance(m, Draft))
    assert (again.start, again.offset, again.tokens[:4]) == (2, 0, (5, 6, 7, 8))
    assert len(asyncio.all_tasks()) == 1


async def test_it_drafts_on_while_no_verifier_is_there() -> None:
    lost, drafted = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 10:
            await lost.wait()
        if len(context) == 12:
            drafted.set()

    first = ScriptedLink(scripted(quiet, let(lost), lose))
    second = ScriptedLink(unopened(on(drafted), OPENED, Finish("stop")))

    await Edge(first, second, slot=CountingSlot(wait=wait)).run()

    assert drafted.is_set()


async def test_a_text_that_is_complete_needs_no_other_verifier() -> None:
    edge = Edge(ScriptedLink(scripted(Commit(0, 0, (3, STOP), accepted=1), lose)))

    assert await edge.run() == Finish("stop", Totals(1, 1, 1, 0))
    assert edge.emitted == [3, STOP]


@pytest.mark.parametrize(
    "lost", [lambda: ScriptedLink(scripted(lose)), Postless], ids=["stream", "posts"]
)
async def test_sessions_that_are_lost_for_good_are_an_error_and_nothing_is_left(
    lost: type[Postless],
) -> None:
    links = [lost() for _ in range(3)]
    edge = Edge(*links, slot=CountingSlot())

    with pytest.raises(Unavailable, match="went away"):
        await edge.run()

    assert [link.closed for link in links] == [1, 1, 1]
    assert len(asyncio.all_tasks()) == 1
