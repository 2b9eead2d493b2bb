"""The round policies, in the product's own pipeline: when they draft, and when they send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest
from edge_agent.pipeline import Pipeline
from edge_agent.steps import Guesser
from prometheus_client import CollectorRegistry

from bench.run.rounds import PaperPace, RoundPace, Rule, SyncPace
from edge_agent.metrics import EdgeMetrics
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.protocol.messages import Commit, Down, Draft, Finish, Limits, Sampling, TokenId
from speculation.sampling import draft_sampler as guessing
from speculation.sampling.draft_token import DraftToken
from tests.edge_agent.fakes import CountingSeat, ScriptedLink


class Edge:
    """A session that drafts 0, 1, 2, ... for as long as its pace lets it."""

    def __init__(
        self, kind: Callable[..., RoundPace], gamma: int, max_tokens: int = 100
    ) -> None:
        self.session = DraftingSession(max_tokens=max_tokens, stop_tokens=())
        self.pace = kind(gamma, DraftSettings(), Limits(), lambda: 0.0)

    def draft(self) -> Draft | None:
        """Draft what may be drafted; return what is sent then."""
        while self.session.may_extend and self.pace.may_draft(self.session):
            token = len(self.session.guessed)
            self.session.extend(DraftToken(token, confidence=0.5))
        if self.pace.should_flush(self.session, drafting=False, separate=False):
            return self.session.flush()
        return None

    def hear(self, *tokens: int) -> None:
        self.session.receive(Commit(self.session.epoch, len(self.session.committed), tokens))


@pytest.mark.parametrize("kind", [SyncPace, PaperPace])
def test_a_round_is_sent_whole(kind: Callable[..., RoundPace]) -> None:
    edge = Edge(kind, gamma=3)
    edge.session.extend(DraftToken(0, confidence=0.5))

    early = edge.pace.should_flush(edge.session, drafting=True, separate=False)
    sent = edge.draft()

    assert not early
    assert sent is not None
    assert sent.tokens == (0, 1, 2)


def test_sync_does_not_draft_while_a_round_is_away() -> None:
    edge = Edge(SyncPace, gamma=3)
    edge.draft()

    assert edge.draft() is None
    assert len(edge.session.chain) == 3


def test_paper_drafts_the_next_round_and_sends_it_when_the_last_stood() -> None:
    edge = Edge(PaperPace, gamma=3)
    edge.draft()

    meanwhile = edge.draft()
    edge.hear(0, 1, 2, 3)  # the round, and a token of the target's own
    complete = not edge.pace.may_draft(edge.session)
    after = edge.draft()

    assert meanwhile is None
    assert complete
    assert after is not None
    assert after.tokens == (4, 5, 6)


async def test_paper_drafts_in_the_products_pipeline_while_a_round_is_away() -> None:
    session = DraftingSession(max_tokens=100, stop_tokens=())
    drafted = asyncio.Event()

    async def note(context: Sequence[TokenId]) -> None:
        if len(context) == 1 + 6:  # a round, and the next one; one more confirms the first
            drafted.set()

    async def slow(link: ScriptedLink) -> AsyncGenerator[Down]:
        await link.until_sent(3)
        async with asyncio.timeout(2):
            await drafted.wait()
        yield Finish("stop")

    link = ScriptedLink(slow)
    pick = guessing.coupled(Sampling(), 0, 1)
    pace = PaperPace(3, DraftSettings(), Limits(), lambda: 0.0)
    guesser = Guesser(CountingSeat(wait=note), pick, (0,))
    metrics = EdgeMetrics(CollectorRegistry())
    pipeline = Pipeline(session, link, guesser, pace, metrics, uniforms=iter([]))

    async def emit(commit: Commit) -> None:
        raise AssertionError(commit)

    assert await pipeline.run(emit) == Finish("stop")


def test_paper_drops_the_next_round_when_the_last_fell() -> None:
    edge = Edge(PaperPace, gamma=3)
    edge.draft()
    edge.draft()

    edge.hear(0, 77)
    after = edge.draft()

    assert after is not None
    assert (after.epoch, after.start, after.tokens) == (1, 2, (2, 3, 4))


def test_a_round_that_is_judged_in_part_is_still_away() -> None:
    edge = Edge(SyncPace, gamma=3)
    edge.draft()

    edge.hear(0, 1)

    assert edge.draft() is None
    assert len(edge.session.chain) == 1


def test_the_last_round_is_as_short_as_the_answer() -> None:
    edge = Edge(SyncPace, gamma=8, max_tokens=2)

    sent = edge.draft()

    assert sent is not None
    assert sent.tokens == (0, 1)


@pytest.mark.parametrize("text", ["sync", "sync:0", "sync:17", "paper:x", "other:4"])
def test_what_is_no_rule_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Rule.parse(text)
