"""The pipeline moves tokens; a fake seat and a fake link are all it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest

from edge_agent import guessing
from edge_agent.drafter import CannotDraft, Seat
from edge_agent.guessing import Pick
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from edge_agent.pipeline import Guesser, Pipeline
from gateway.errors import EngineFault, Unavailable
from speculation.drafting import DraftingSession, Guess
from speculation.laws import DraftLaw
from speculation.lookup import Lookup
from speculation.messages import (
    Commit,
    Down,
    Draft,
    Finish,
    Opened,
    Redraw,
    Refuse,
    Sampling,
    TokenId,
)
from speculation.pacing import DraftPacing
from tests.edge_agent.fakes import LIMITS, CountingSeat, ScriptedLink, commits, saying

PROMPT = (50, 51, 52)
"""So that CountingSeat guesses 3 for position 0."""


class Edge:
    """A pipeline, and what it emitted."""

    def __init__(
        self,
        metrics: EdgeMetrics,
        link: ScriptedLink,
        seat: Seat | None = None,
        *,
        max_tokens: int = 40,
        pacing: DraftPacing | None = None,
        separate: bool = False,
        stop: TokenId = 777,
        prompt: tuple[TokenId, ...] = PROMPT,
        lookup: bool = False,
    ) -> None:
        pick = guessing.coupled(Sampling(), 0, len(prompt))
        self.session = DraftingSession(max_tokens=max_tokens, stop_tokens=(stop,))
        self.spoken: list[TokenId] = []
        self.pipeline = Pipeline(
            self.session,
            link,
            None if seat is None else Guesser(seat, pick, prompt),
            Pace(pacing or DraftPacing(), LIMITS, lambda: 0.0),
            metrics,
            uniforms=iter(np.random.default_rng(3).random, 2.0),
            lookup=Lookup(prompt) if lookup else None,
            separate=separate,
        )

    async def emit(self, commit: Commit) -> None:
        assert commit.start == len(self.spoken)
        self.spoken.extend(commit.tokens)

    async def run(self) -> Finish:
        async with asyncio.timeout(2):
            return await self.pipeline.run(self.emit)


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
    async def correcting(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(4)
        yield Commit(0, 0, (3, 99), accepted=1)
        await link.until_sent(20)
        yield Finish("stop")

    link = ScriptedLink(correcting)
    edge = Edge(metrics, link, CountingSeat())

    await edge.run()

    assert edge.spoken == [3, 99]
    first = next(m for m in link.sent if m.epoch == 1 and isinstance(m, Draft))
    assert (first.start, first.behind, first.tokens[0]) == (2, 0, 5)


async def test_a_step_that_ends_after_its_chain_broke_is_never_sent(
    metrics: EdgeMetrics,
) -> None:
    corrected, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 5:
            stepping.set()
            await corrected.wait()  # still drafting when the correction lands

    async def correcting(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await stepping.wait()
        yield Commit(0, 0, (99,))
        corrected.set()
        await link.until_sent(6)
        yield Finish("stop")

    link = ScriptedLink(correcting)
    edge = Edge(metrics, link, CountingSeat(wait=wait))

    await edge.run()

    first = next(m for m in link.sent if m.epoch == 1 and isinstance(m, Draft))
    assert first.tokens[0] == 4  # drawn after the prompt and 99, not after the old chain
    assert metrics.stale._value.get() == 1


async def test_a_step_overtaken_by_a_fill_in_is_not_used_though_the_chain_held(
    metrics: EdgeMetrics,
) -> None:
    filled, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 3:
            stepping.set()
            await filled.wait()

    async def filling(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await stepping.wait()
        yield Commit(0, 0, (88, 89))
        filled.set()
        await link.until_sent(2)
        yield Finish("stop")

    link = ScriptedLink(filling)

    await Edge(metrics, link, CountingSeat(wait=wait)).run()

    assert link.sent[0] == Draft(0, 2, 0, (5, 6))


async def test_it_stops_at_the_window_and_goes_on_when_commits_make_room(
    metrics: EdgeMetrics,
) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(16)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(link.drafted) == 16  # max_ahead
        yield Commit(0, 0, (3, 4), accepted=2)
        await link.until_sent(18)
        yield Finish("stop")

    await Edge(metrics, ScriptedLink(patient), CountingSeat()).run()


async def test_it_stops_when_the_chain_is_unlikely_and_sends_what_it_has(
    metrics: EdgeMetrics,
) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(3)
        for _ in range(20):
            await asyncio.sleep(0)
        yield Finish("stop")

    link = ScriptedLink(patient)
    pacing = DraftPacing(min_survival=0.2, flush_tokens=2)

    await Edge(metrics, link, CountingSeat(confidence=0.5), pacing=pacing).run()

    assert [m.tokens for m in link.sent if isinstance(m, Draft)] == [(3, 4), (5,)]


async def test_it_drafts_nothing_after_a_stop_token_or_the_last_token(
    metrics: EdgeMetrics,
) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(3)
        for _ in range(20):
            await asyncio.sleep(0)
        yield Finish("stop")

    stopping, lasting = ScriptedLink(patient), ScriptedLink(patient)
    await Edge(metrics, stopping, CountingSeat(), stop=7).run()
    await Edge(metrics, lasting, CountingSeat(), max_tokens=3).run()

    assert stopping.drafted == [3, 4, 5, 6, 7]
    assert lasting.drafted == [3, 4, 5]


async def test_it_drafts_no_further_than_the_draft_model_can_hold(metrics: EdgeMetrics) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        for _ in range(20):
            await asyncio.sleep(0)
        for message in commits(range(3, 13)):
            yield message

    link = ScriptedLink(patient)
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


async def idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_without_a_seat_it_drafts_what_followed_before(metrics: EdgeMetrics) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await idle()
        yield Commit(0, 0, (9, 1, 2, 3))  # as in the prompt
        await link.until_sent(3)
        yield Commit(0, 4, (4, 5, 6, 9, 9), accepted=3)
        yield Finish("stop")

    link = ScriptedLink(patient)
    edge = Edge(metrics, link, prompt=(1, 2, 3, 4, 5, 6, 7), lookup=True)

    await edge.run()

    first = link.sent[0]
    assert isinstance(first, Draft)
    assert (first.start, first.tokens[:4]) == (4, (4, 5, 6, 7))
    assert edge.spoken == [9, 1, 2, 3, 4, 5, 6, 9, 9]
    assert (edge.pipeline.drafted, edge.pipeline.looked_up) == (0, len(link.drafted))


async def test_a_lookup_that_was_wrong_breaks_the_chain_like_any_guess(
    metrics: EdgeMetrics,
) -> None:
    async def correcting(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (1, 2, 3))
        await link.until_sent(4)
        yield Commit(0, 3, (4, 88, 5, 6, 7))
        await link.until_sent(len(link.drafted) + 1)
        yield Finish("stop")

    link = ScriptedLink(correcting)
    edge = Edge(metrics, link, prompt=(1, 2, 3, 4, 5, 6, 7, 8), lookup=True)

    await edge.run()

    second = next(m for m in link.sent if m.epoch == 1)
    assert isinstance(second, Draft)
    assert (second.start, second.behind, second.tokens[0]) == (8, 0, 8)


async def test_where_steps_limit_it_looks_up_and_the_seat_reads_on_from_there(
    metrics: EdgeMetrics,
) -> None:
    prompt = tuple(range(100, 140))

    async def copying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Commit(0, 0, prompt[:1], pass_s=1.0)  # with the prompt: no pass's time
        yield Commit(0, 1, prompt[1:20], pass_s=1e-4)
        await link.until_sent(18)
        yield Finish("stop")

    seat = CountingSeat(wait=lambda _: asyncio.sleep(0.01))
    edge = Edge(metrics, ScriptedLink(copying), seat, prompt=prompt, lookup=True, max_tokens=99)

    await edge.run()

    assert edge.pipeline.looked_up == 16
    assert [guess.token for guess in edge.session.chain[:16]] == list(prompt[20:36])


async def test_what_reading_takes_the_draft_model_is_seen_when_the_target_goes_ahead(
    metrics: EdgeMetrics,
) -> None:
    async def ahead(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Commit(0, 0, (*link.drafted, 60, 61, 62, 63), accepted=2)
        await link.until_sent(3)
        yield Finish("stop")

    seat = CountingSeat(confidence=0.3, wait=lambda _: asyncio.sleep(0.001))
    edge = Edge(metrics, ScriptedLink(ahead), seat, lookup=True)

    await edge.run()

    assert edge.pipeline._lookup is not None
    assert edge.pipeline._lookup._read_s is not None


async def test_a_seat_fast_enough_for_the_passes_is_not_passed_over(
    metrics: EdgeMetrics,
) -> None:
    prompt = tuple(range(100, 140))

    async def copying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Commit(0, 0, prompt[:1], pass_s=1.0)  # with the prompt: no pass's time
        yield Commit(0, 1, prompt[1:20], pass_s=10.0)
        await link.until_sent(18)
        yield Finish("stop")

    edge = Edge(metrics, ScriptedLink(copying), CountingSeat(), prompt=prompt, lookup=True)

    await edge.run()

    assert edge.pipeline.looked_up == 0


async def test_past_the_draft_models_room_and_after_its_failure_it_looks_up_alone(
    metrics: EdgeMetrics,
) -> None:
    async def fail(context: Sequence[TokenId]) -> None:
        raise CannotDraft("no memory")

    async def copying(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        yield Commit(0, 0, (1, 2, 3))
        await link.until_sent(3)
        yield Finish("stop")

    full, failing = ScriptedLink(copying), ScriptedLink(copying)
    prompt = (1, 2, 3, 4, 5, 6, 7)
    seats = CountingSeat(context_tokens=7), CountingSeat(wait=fail)
    for link, seat in zip((full, failing), seats, strict=True):
        await Edge(metrics, link, seat, prompt=prompt, lookup=True).run()

    assert full.drafted[:3] == failing.drafted[:3] == [4, 5, 6]


class LawfulSeat(CountingSeat):
    """Drafts token 1, sure of it; its law allows 2 as well."""

    async def step(self, context: Sequence[TokenId], prompt_tokens: int, pick: Pick) -> Guess:
        await asyncio.sleep(0)
        return Guess(1, 1.0, DraftLaw(np.array([1, 2]), np.array([65535, 1])))


async def test_a_refused_token_is_replaced_and_the_replacement_sent_at_once(
    metrics: EdgeMetrics,
) -> None:
    async def refusing(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(2)
        yield Refuse(0, 0, ((5, 1.0),), 0.0)
        assert link.sent[-1] == Draft(1, 0, 0, (5,), (), forced=True)
        yield Commit(1, 0, (5,))
        yield Finish("stop")

    edge = Edge(metrics, ScriptedLink(refusing), LawfulSeat(), separate=True)
    await edge.run()

    assert edge.spoken == [5]


async def test_more_of_the_tail_is_asked_for_when_it_runs_out(metrics: EdgeMetrics) -> None:
    asked: list[Draft | Redraw] = []

    async def stingy(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(1)
        yield Refuse(0, 0, (), 1.0, ())
        asked.append(link.sent[-1])
        yield Refuse(1, 0, (), 1.0, ((5, 0.5),))
        asked.append(link.sent[-1])
        yield Finish("stop")

    await Edge(metrics, ScriptedLink(stingy), LawfulSeat(), separate=True).run()

    assert asked == [Redraw(1, 0), Draft(2, 0, 0, (5,), (), forced=True)]


async def test_in_separate_every_guess_is_sent_by_itself(metrics: EdgeMetrics) -> None:
    async def patient(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await link.until_sent(6)
        yield Finish("stop")

    link = ScriptedLink(patient)
    await Edge(metrics, link, LawfulSeat(), separate=True).run()

    assert {m.tokens for m in link.sent if isinstance(m, Draft)} == {(1,)}


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

    async def silent(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="no way up"):
        await Edge(metrics, Postless(silent), CountingSeat()).run()


@pytest.mark.parametrize(
    "said",
    [Commit(0, 5, (1,)), Refuse(0, 3, ((5, 1.0),), 0.0)],
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
    async def endless(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield Opened("s", LIMITS)
        await asyncio.Event().wait()

    link = ScriptedLink(endless)
    job = asyncio.create_task(Edge(metrics, link, CountingSeat()).run())
    await link.until_sent(4)

    job.cancel()
    await asyncio.wait([job])

    assert job.cancelled()
    assert link.cancelled == 1
    assert len(asyncio.all_tasks()) == 1
