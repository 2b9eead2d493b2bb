"""The driver moves tokens between a draft model and sessions, of which some are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edge_agent.draft.drafter import CannotDraft, NoDrafter
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import EngineFault, Unavailable
from gateway.ports import Job
from speculation.distributions import QuantisedDistribution
from speculation.draft_token import DraftToken
from speculation.messages import Commit, Draft, Finish, Recovered, Reject
from speculation.model_facts import TokenId
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    OPENED,
    CountingSlot,
    FakeVerifiers,
    OneSlot,
    ScriptedLink,
    Step,
    commits,
    deltas,
    engine,
    let,
    on,
    quiet,
    scripted,
    sent,
    unopened,
)

STOP = 777
LONG = replace(JOB, max_tokens=40)
KNOWN = msgspec.structs.replace(FACTS, stop_tokens=[STOP], judges=["coupled", "separate"])


def link(*steps: Step) -> ScriptedLink:
    return ScriptedLink(scripted(*steps))


async def answer(
    *links: ScriptedLink,
    slot: CountingSlot | None = None,
    job: Job = LONG,
    judge: str = "coupled",
    metrics: EdgeMetrics | None = None,
) -> list[TokenId]:
    """Return the tokens of an answer whose sessions have these links. No task is left."""
    verifiers = FakeVerifiers(*links, known=KNOWN)
    drafter = NoDrafter() if slot is None else OneSlot(slot)
    edge = engine(verifiers, metrics, drafter, EdgeSettings(judge=judge))
    try:
        received = await deltas(edge.generate(job))
    finally:
        assert len(asyncio.all_tasks()) == 1
        assert not any(each.posting for each in links)
        assert [each.closed for each in links] == [1] * len(verifiers.opened)
    return [token for delta in received for token in delta.tokens]


async def test_tokens_come_out_in_order() -> None:
    only = link(*commits(range(3, 23), size=3))

    assert await answer(only, slot=CountingSlot()) == list(range(3, 23))


async def test_it_drafts_before_the_session_is_open() -> None:
    commit = Commit(0, 0, (3,), accepted=1)
    only = ScriptedLink(unopened(sent(8), OPENED, commit, Finish("stop")))

    await answer(only, slot=CountingSlot())

    assert only.drafted[:8] == list(range(3, 11))


async def test_a_draft_model_that_fails_leaves_the_rest_to_the_verifier() -> None:
    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 4:
            raise CannotDraft("no room")

    only = link(quiet, *commits([3, 90, 91, 92]))

    assert await answer(only, slot=CountingSlot(wait=wait)) == [3, 90, 91, 92]
    assert only.drafted == [3]


async def test_it_drafts_on_while_a_slow_client_takes_what_was_committed() -> None:
    only = link(sent(16), Commit(0, 0, (3, 4), accepted=2), Finish("stop"))
    stream = engine(FakeVerifiers(only, known=KNOWN)).generate(LONG)

    await anext(stream)
    await only.until_sent(18)
    await stream.aclose()

    assert only.drafted[:18] == list(range(3, 21))


async def test_a_verifier_that_breaks_the_protocol_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="broke the protocol"):
        await answer(link(Commit(0, 5, (1,))))


async def test_what_followed_before_is_read_in_the_step_that_drafts(
    metrics: EdgeMetrics,
) -> None:
    prompt = (*range(8, 16), 1, 2)  # as long as the repeated text begins
    slot = CountingSlot(wait=lambda _: asyncio.sleep(0.001))
    job = replace(LONG, prompt=prompt)

    await answer(link(sent(9), Finish("stop")), slot=slot, job=job, metrics=metrics)

    assert max(map(len, slot.contexts)) > len(prompt) + len(slot.contexts)
    assert metrics.drafted._value.get() > len(slot.contexts)


class DrawingSlot(CountingSlot):
    """Drafts token 1, with confidence 1; its distribution also has token 2."""

    def draft(self, length: int) -> DraftToken:
        return DraftToken(1, 1.0, QuantisedDistribution(np.array([1, 2]), np.array([65535, 1])))


async def test_in_separate_the_recovered_token_is_sent_at_once() -> None:
    async def is_recovered(link: ScriptedLink) -> None:
        assert Recovered(1, 0, 5) in link.sent

    rejecting = sent(2), Reject(0, 0, 0, ((5, 1.0),), 0.0), is_recovered, Commit(1, 0, (5,))
    only = link(*rejecting, Finish("stop"))

    assert await answer(only, slot=DrawingSlot(), judge="separate") == [5]


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
    first = link(sent(4), Commit(0, 0, (3, 4), accepted=2), quiet, lose)
    second = link(sent(4), Commit(0, 2, (5, 6), accepted=2), Finish("stop"))

    assert await answer(first, second, slot=CountingSlot()) == [3, 4, 5, 6]

    again = next(m for m in second.sent if isinstance(m, Draft))
    assert (again.start, again.offset, again.tokens[:4]) == (2, 0, (5, 6, 7, 8))


async def test_it_drafts_on_while_no_verifier_is_there() -> None:
    lost, drafted = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 10:
            await lost.wait()
        if len(context) == 12:
            drafted.set()

    first = link(quiet, let(lost), lose)
    second = ScriptedLink(unopened(on(drafted), OPENED, Finish("stop")))

    await answer(first, second, slot=CountingSlot(wait=wait))

    assert drafted.is_set()


async def test_a_text_that_is_complete_needs_no_other_verifier() -> None:
    only = link(Commit(0, 0, (3, STOP), accepted=1), lose)

    assert await answer(only) == [3, STOP]


@pytest.mark.parametrize("lost", [lambda: link(lose), Postless], ids=["stream", "posts"])
async def test_sessions_that_are_lost_for_good_are_an_error_and_nothing_is_left(
    lost: type[Postless],
) -> None:
    links = [lost() for _ in range(3)]

    with pytest.raises(Unavailable, match="went away"):
        await answer(*links, slot=CountingSlot())

    assert [each.closed for each in links] == [1, 1, 1]
