"""The round policies, in the product's own machine: when they draft, and when they send."""

from __future__ import annotations

import pytest

from picospec.bench.round_policy import RoundPolicy
from picospec.speculation.drafting.machine import DraftMachine
from picospec.speculation.judges.judges import JUDGES
from picospec.speculation.protocol.messages import (
    Commit,
    Draft,
    Limits,
    Open,
    Pushed,
    Sampling,
    TokenId,
)
from picospec.speculation.sampling.draft_token import DraftToken

PAPER = RoundPolicy(3, overlaps=True)


class Edge:
    """A session that drafts 0, 1, 2, ... for as long as its policy lets it."""

    def __init__(self, policy: RoundPolicy, max_tokens: int = 100) -> None:
        request = Open("m", "v", (), Sampling(), 0, max_tokens, ())
        half = JUDGES["coupled"].edge(request, iter(()))
        self.machine = DraftMachine(
            request, policy, Limits(), half, rtt_s=lambda: 0.0, drafts=True
        )
        self.session = self.machine.session

    def draft(self, most: int = 100) -> Draft | None:
        """Make at most so many steps; return what was sent in the end."""
        sent = list[Pushed]()
        for made in range(most + 1):
            outcome = self.machine.next(0.0, busy=False)
            sent += outcome.send
            if (step := outcome.step) is None or made == most:
                break
            drafted = DraftToken(len(step.context), confidence=0.5)
            self.machine.drafted(step, [drafted], 0.0)
        assert len(sent) <= 1
        return next((message for message in sent if isinstance(message, Draft)), None)

    def receive(self, *tokens: TokenId) -> None:
        session = self.session
        self.machine.received(Commit(session.epoch, len(session.committed), tokens))


def test_paper_drafts_the_next_round_and_sends_it_when_the_last_was_accepted() -> None:
    edge = Edge(PAPER)
    edge.draft()

    meanwhile = edge.draft()
    drafted = len(edge.session.chain)
    edge.receive(0, 1, 2, 3)  # the round, and the bonus token
    after = edge.draft(most=0)

    assert meanwhile is None
    assert drafted == 3 + 4  # one more, which the bonus token confirms
    assert after is not None
    assert after.tokens == (4, 5, 6)


def test_paper_drops_the_next_round_when_the_last_was_rejected() -> None:
    edge = Edge(PAPER)
    edge.draft()
    edge.draft()

    edge.receive(0, 77)
    after = edge.draft()

    assert after is not None
    assert (after.epoch, after.start, after.tokens) == (1, 2, (2, 3, 4))


@pytest.mark.parametrize("text", ["sync", "sync:0", "sync:17", "paper:x", "other:4"])
def test_what_is_no_policy_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RoundPolicy.parse(text)
