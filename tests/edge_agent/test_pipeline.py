"""The pipeline moves tokens; a fake seat and a fake link are all it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from edge_agent.draft_model.drafter import CannotDraft
from edge_agent.metrics import EdgeMetrics
from gateway.errors import EngineFault, Unavailable
from speculation.drafting.policy import DraftSettings
from speculation.protocol.messages import Commit, Down, Draft, Finish, Opened, Reject, TokenId
from tests.edge_agent.fakes import (
    LIMITS,
    CountingSeat,
    ScriptedLink,
    commits,
    let,
    on,
    quiet,
    saying,
    sent,
)
from tests.edge_agent.piped import Edge


async def test_tokens_come_out_in_order_and_no_task_is_left(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(saying(*commits(range(3, 23), size=3)))
    edge = Edge(metrics, link, CountingSeat(), max_tokens=20)

    finish = await edge.run()

    assert finish == Finish("length")
    assert edge.spoken == list(range(3, 23))
    assert len(asyncio.all_tasks()) == 1
    assert not link.posting


async def test_without_a_seat_it_only_listens(metrics: EdgeMetrics) -> None:
    link = ScriptedLink(saying(*commits([9, 9, 9])))

    edge = Edge(metrics, link, None)
    await edge.run()

    assert edge.spoken == [9, 9, 9]
    assert link.sent == []


async def test_it_drafts_before_the_session_is_open(metrics: EdgeMetrics) -> None:
    async def slow_to_open(link: ScriptedLink) -> AsyncGenerator[Down]:
        await link.until_sent(8)  # while the verifier reads the prompt
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (3,), accepted=1)
        yield Finish("stop")

    link = ScriptedLink(slow_to_open)
    edge = Edge(metrics, link, CountingSeat())

    await edge.run()

    assert link.drafted[:8] == list(range(3, 11))


async def test_a_broken_chain_is_begun_anew_from_what_was_committed(
    metrics: EdgeMetrics,
) -> None:
    script = saying(sent(4), Commit(0, 0, (3, 99), accepted=1), sent(20), Finish("stop"))
    link = ScriptedLink(script)
    edge = Edge(metrics, link, CountingSeat())

    await edge.run()

    assert edge.spoken == [3, 99]
    first = next(m for m in link.sent if m.epoch == 1 and isinstance(m, Draft))
    assert (first.start, first.behind, first.tokens[0]) == (2, 0, 5)


async def test_a_step_that_ends_after_its_chain_broke_is_never_sent(
    metrics: EdgeMetrics,
) -> None:
    landed, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 5:
            stepping.set()
            await landed.wait()  # still drafting when the correction lands

    script = saying(on(stepping), Commit(0, 0, (99,)), let(landed), sent(6), Finish("stop"))
    link = ScriptedLink(script)
    edge = Edge(metrics, link, CountingSeat(wait=wait))

    await edge.run()

    first = next(m for m in link.sent if m.epoch == 1 and isinstance(m, Draft))
    assert first.tokens[0] == 4  # drawn after the prompt and 99, not after the old chain
    assert metrics.stale._value.get() == 1


async def test_a_step_overtaken_by_a_fill_in_is_not_used_though_the_chain_held(
    metrics: EdgeMetrics,
) -> None:
    landed, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 3:
            stepping.set()
            await landed.wait()

    script = saying(on(stepping), Commit(0, 0, (88, 89)), let(landed), sent(2), Finish("stop"))
    link = ScriptedLink(script)

    await Edge(metrics, link, CountingSeat(wait=wait)).run()

    assert link.sent[0] == Draft(0, 2, 0, (5, 6))


async def test_it_stops_at_the_window_and_goes_on_when_commits_make_room(
    metrics: EdgeMetrics,
) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(16)
        await quiet(link)
        assert len(link.drafted) == 16  # max_ahead
        yield Commit(0, 0, (3, 4), accepted=2)
        await link.until_sent(18)
        yield Finish("stop")

    await Edge(metrics, ScriptedLink(patient), CountingSeat()).run()


async def test_it_stops_when_the_chain_is_unlikely_and_sends_what_it_has(
    metrics: EdgeMetrics,
) -> None:
    script = saying(sent(3), quiet, Finish("stop"))
    link = ScriptedLink(script)
    pacing = DraftSettings(min_survival=0.2, flush_tokens=2)

    await Edge(metrics, link, CountingSeat(confidence=0.5), pacing=pacing).run()

    assert link.sent == [Draft(0, 0, 0, (3, 4)), Draft(0, 2, 2, (5,), pauses=True)]


async def test_it_drafts_nothing_after_a_stop_token_or_the_last_token(
    metrics: EdgeMetrics,
) -> None:
    script = saying(sent(3), quiet, Finish("stop"))
    stopping, lasting = ScriptedLink(script), ScriptedLink(script)
    await Edge(metrics, stopping, CountingSeat(), stop=7).run()
    await Edge(metrics, lasting, CountingSeat(), max_tokens=3).run()

    assert stopping.drafted == [3, 4, 5, 6, 7]
    assert lasting.drafted == [3, 4, 5]


async def test_it_drafts_no_further_than_the_draft_model_can_hold(metrics: EdgeMetrics) -> None:
    script = saying(sent(2), quiet, *commits(range(3, 13)))
    link = ScriptedLink(script)
    edge = Edge(metrics, link, CountingSeat(context_tokens=5))

    await edge.run()

    assert link.drafted == [3, 4]
    assert edge.spoken == list(range(3, 13))


async def test_a_draft_model_that_fails_leaves_the_rest_to_the_verifier(
    metrics: EdgeMetrics,
) -> None:
    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 4:
            raise CannotDraft("no room")

    link = ScriptedLink(saying(*commits([3, 90, 91, 92])))
    edge = Edge(metrics, link, CountingSeat(wait=wait))

    await edge.run()

    assert edge.spoken == [3, 90, 91, 92]


async def test_a_commit_said_twice_is_emitted_once(metrics: EdgeMetrics) -> None:
    script = saying(
        Commit(0, 0, (9, 8), accepted=1), Commit(0, 1, (8, 6, 5), accepted=2), Finish("stop")
    )

    edge = Edge(metrics, ScriptedLink(script))
    await edge.run()

    assert edge.spoken == [9, 8, 6, 5]


async def test_a_link_that_fails_is_an_error_and_nothing_is_left(metrics: EdgeMetrics) -> None:
    async def dying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        raise Unavailable("the verifier went away")

    link = ScriptedLink(dying)

    with pytest.raises(Unavailable, match="went away"):
        await Edge(metrics, link, CountingSeat()).run()

    assert len(asyncio.all_tasks()) == 1
    assert link.cancelled == 1


async def test_posts_that_fail_end_the_job(metrics: EdgeMetrics) -> None:
    class Postless(ScriptedLink):
        async def post(self) -> None:
            await self.until_sent(2)
            raise Unavailable("no way up")

    script = saying(on(asyncio.Event()))
    with pytest.raises(Unavailable, match="no way up"):
        await Edge(metrics, Postless(script), CountingSeat()).run()


@pytest.mark.parametrize(
    "said",
    [Commit(0, 5, (1,)), Reject(0, 3, ((5, 1.0),), 0.0)],
    ids=["a gap", "a refusal of nothing"],
)
async def test_a_verifier_that_breaks_the_protocol_is_a_fault(
    metrics: EdgeMetrics, said: Down
) -> None:
    link = ScriptedLink(saying(said))

    with pytest.raises(EngineFault, match="broke the protocol"):
        await Edge(metrics, link).run()


async def test_cancelling_ends_the_session_at_the_verifier_and_leaves_no_task(
    metrics: EdgeMetrics,
) -> None:
    script = saying(on(asyncio.Event()))
    link = ScriptedLink(script)
    job = asyncio.create_task(Edge(metrics, link, CountingSeat()).run())
    await link.until_sent(4)

    job.cancel()
    await asyncio.wait([job])

    assert job.cancelled()
    assert link.cancelled == 1
    assert len(asyncio.all_tasks()) == 1
