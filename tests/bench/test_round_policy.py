"""The round policies: when they let the edge draft, and when it sends."""

from __future__ import annotations

import pytest

from bench.round_policy import RoundPolicy
from speculation.drafting.machine import DraftMachine
from speculation.drafting.session import DraftingSession
from speculation.proposing.latencies import Latencies
from speculation.protocol.messages import Commit, Draft, Limits, Open, Opened, Sampling
from speculation.sampling.draft_token import DraftToken

LATENCIES = Latencies(0.0, 0.0, 0.0)


def paper(gamma: int) -> RoundPolicy:
    return RoundPolicy(gamma, overlaps=True)


class Edge:
    """A session that drafts 0, 1, 2, ... for as long as its policy lets it."""

    def __init__(self, policy: RoundPolicy, max_tokens: int = 100) -> None:
        self.session = DraftingSession(max_tokens=max_tokens, stop_tokens=())
        self.policy = policy

    @property
    def may_draft(self) -> bool:
        return self.policy.may_draft(self.session, LATENCIES, Limits())

    def draft(self) -> Draft | None:
        """Draft what may be drafted; return what is sent then."""
        while self.session.may_extend and self.may_draft:
            token = len(self.session.committed) + len(self.session.chain)
            self.session.extend(DraftToken(token, confidence=0.5))
        if self.policy.should_send(self.session, drafting=False):
            return self.session.flush()
        return None

    def receive(self, *tokens: int) -> None:
        self.session.receive(Commit(self.session.epoch, len(self.session.committed), tokens))


@pytest.mark.parametrize("policy", [RoundPolicy(3), paper(3)])
def test_a_round_is_sent_whole(policy: RoundPolicy) -> None:
    edge = Edge(policy)
    edge.session.extend(DraftToken(0, confidence=0.5))

    early = policy.should_send(edge.session, drafting=True)
    sent = edge.draft()

    assert not early
    assert sent is not None
    assert sent.tokens == (0, 1, 2)


def test_sync_does_not_draft_while_a_round_is_away() -> None:
    edge = Edge(RoundPolicy(3))
    edge.draft()

    assert edge.draft() is None
    assert len(edge.session.chain) == 3


def test_paper_drafts_the_next_round_and_sends_it_when_the_last_was_accepted() -> None:
    edge = Edge(paper(3))
    edge.draft()

    meanwhile = edge.draft()
    edge.receive(0, 1, 2, 3)  # the round, and the bonus token
    complete = not edge.may_draft
    after = edge.draft()

    assert meanwhile is None
    assert complete
    assert after is not None
    assert after.tokens == (4, 5, 6)


def test_paper_drafts_in_the_products_machine_while_a_round_is_away() -> None:
    request = Open(
        model="m", vocabulary="v", prompt=(0,), sampling=Sampling(), seed=0, max_tokens=100,
        stop_tokens=(), fill="never",
    )  # fmt: skip
    machine = DraftMachine(
        request, paper(3), Limits(), rtt_s=lambda: 0.0, u=iter(()), readable_tokens=100
    )
    machine.received(Opened("s", Limits()))

    while step := machine.next(0.0, busy=False).step:
        machine.drafted(step, [DraftToken(len(step.context), confidence=0.5)], 0.0)

    assert len(machine.session.chain) == 3 + 3 + 1  # two rounds; one token confirms the first


def test_paper_drops_the_next_round_when_the_last_was_rejected() -> None:
    edge = Edge(paper(3))
    edge.draft()
    edge.draft()

    edge.receive(0, 77)
    after = edge.draft()

    assert after is not None
    assert (after.epoch, after.start, after.tokens) == (1, 2, (2, 3, 4))


def test_a_round_that_is_judged_in_part_is_still_away() -> None:
    edge = Edge(RoundPolicy(3))
    edge.draft()

    edge.receive(0, 1)

    assert edge.draft() is None
    assert len(edge.session.chain) == 1


def test_the_last_round_is_as_short_as_the_answer() -> None:
    edge = Edge(RoundPolicy(8), max_tokens=2)

    sent = edge.draft()

    assert sent is not None
    assert sent.tokens == (0, 1)


@pytest.mark.parametrize("text", ["sync", "sync:0", "sync:17", "paper:x", "other:4"])
def test_an_unknown_policy_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RoundPolicy.parse(text)
