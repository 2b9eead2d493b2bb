"""The driver moves tokens; a fake slot and a fake link are all it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from picospec.edge_agent.draft_model.drafter import CannotDraft
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import EngineFault, Unavailable
from picospec.speculation.protocol.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Opened,
    Reject,
    TokenId,
)
from tests.edge_agent.driven import Edge
from tests.edge_agent.fakes import (
    LIMITS,
    CountingSlot,
    ScriptedLink,
    commits,
    let,
    on,
    quiet,
    scripted,
    sent,
)


async def test_tokens_come_out_in_order_and_no_task_is_left(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(scripted(*commits(range(3, 23), size=3)))
    edge = Edge(metrics, link, CountingSlot(), max_tokens=20)

    finish = await edge.run()

    assert finish == Finish("length")
    assert edge.emitted == list(range(3, 23))
    assert len(asyncio.all_tasks()) == 1
    assert not link.posting


async def test_without_a_slot_it_only_receives(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(scripted(*commits([9, 9, 9])))

    edge = Edge(metrics, link, None)
    await edge.run()

    assert edge.emitted == [9, 9, 9]
    assert link.sent == []


async def test_it_drafts_before_the_session_is_open(metrics: EdgeMetrics) -> None:
    async def slow_to_open(link: ScriptedLink) -> AsyncGenerator[Down]:
        await link.until_sent(8)  # while the verifier reads the prompt
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (3,), accepted=1)
        yield Finish("stop")

    link = ScriptedLink(slow_to_open)
    edge = Edge(metrics, link, CountingSlot())

    await edge.run()

    assert link.drafted[:8] == list(range(3, 11))


async def test_a_step_that_ends_after_its_chain_broke_is_never_sent(
    metrics: EdgeMetrics,
) -> None:
    landed, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 5:
            stepping.set()
            await landed.wait()  # still drafting when the correction lands

    script = scripted(on(stepping), Commit(0, 0, (99,)), let(landed), sent(6), Finish("stop"))
    link = ScriptedLink(script)
    edge = Edge(metrics, link, CountingSlot(wait=wait))

    await edge.run()

    first = next(m for m in link.sent if m.epoch == 1 and isinstance(m, Draft))
    assert first.tokens[0] == 4  # drawn after the prompt and 99, not after the old chain
    assert edge.machine.counts.stale_steps == 1


async def test_a_draft_model_that_fails_leaves_the_rest_to_the_verifier(
    metrics: EdgeMetrics,
) -> None:
    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 4:
            raise CannotDraft("no room")

    link = ScriptedLink(scripted(quiet, *commits([3, 90, 91, 92])))
    edge = Edge(metrics, link, CountingSlot(wait=wait))

    await edge.run()

    assert link.drafted == [3]
    assert edge.emitted == [3, 90, 91, 92]


async def test_it_drafts_on_while_a_slow_client_takes_what_was_committed(
    metrics: EdgeMetrics,
) -> None:
    script = scripted(sent(16), Commit(0, 0, (3, 4), accepted=2), Finish("stop"))
    link = ScriptedLink(script)

    class Slow(Edge):
        async def emit(self, commit: Commit) -> None:
            await link.until_sent(18)

    await Slow(metrics, link, CountingSlot()).run()

    assert link.drafted[:18] == list(range(3, 21))


async def test_a_link_that_fails_is_an_error_and_nothing_is_left(metrics: EdgeMetrics) -> None:
    async def dying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        raise Unavailable("the verifier went away")

    link = ScriptedLink(dying)

    with pytest.raises(Unavailable, match="went away"):
        await Edge(metrics, link, CountingSlot()).run()

    assert len(asyncio.all_tasks()) == 1
    assert link.closed == 1


async def test_posts_that_fail_end_the_job(metrics: EdgeMetrics) -> None:
    class Postless(ScriptedLink):
        async def post(self) -> None:
            await self.until_sent(2)
            raise Unavailable("no way up")

    script = scripted(on(asyncio.Event()))
    with pytest.raises(Unavailable, match="no way up"):
        await Edge(metrics, Postless(script), CountingSlot()).run()


@pytest.mark.parametrize(
    "message",
    [Commit(0, 5, (1,)), Reject(0, 3, 0, ((5, 1.0),), 0.0)],
    ids=["a gap", "a rejection of nothing"],
)
async def test_a_verifier_that_breaks_the_protocol_is_a_fault(
    metrics: EdgeMetrics, message: Down
) -> None:
    link = ScriptedLink(scripted(message))

    with pytest.raises(EngineFault, match="broke the protocol"):
        await Edge(metrics, link).run()


async def test_cancelling_ends_the_session_at_the_verifier_and_leaves_no_task(
    metrics: EdgeMetrics,
) -> None:
    script = scripted(on(asyncio.Event()))
    link = ScriptedLink(script)
    job = asyncio.create_task(Edge(metrics, link, CountingSlot()).run())
    await link.until_sent(4)

    job.cancel()
    await asyncio.wait([job])

    assert job.cancelled()
    assert link.closed == 1
    assert len(asyncio.all_tasks()) == 1


async def test_what_followed_before_is_read_in_the_step_that_drafts(
    metrics: EdgeMetrics,
) -> None:
    prompt = (*range(8, 16), 1, 2)  # as long as the repeated text begins
    link = ScriptedLink(scripted(sent(9), Finish("stop")))
    slot = CountingSlot(wait=lambda _: asyncio.sleep(0.001))
    edge = Edge(metrics, link, slot, prompt=prompt, lookup=True)

    await edge.run()

    assert max(map(len, slot.contexts)) > len(prompt) + len(slot.contexts)
    assert edge.machine.counts.drafted > len(slot.contexts)
