"""What a grammar forces is drafted without a step, and nothing that it does not allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from picospec.edge_agent.proposals import GrammarProposer
from picospec.speculation.distributions import DraftToken
from picospec.speculation.draft_machine import DraftMachine
from picospec.speculation.drafting import StreamPolicy
from picospec.speculation.learning import Latencies
from picospec.speculation.lookup import PromptLookup
from picospec.speculation.messages import Commit, Draft, Limits, TokenId
from tests.speculation import edges

LATENCIES = Latencies(rtt_s=0.01, pass_s=0.01, draft_s=inf)
TEXT = (10, 11, 12, 20, 21, 13, 14)
FREE = (20, 21)


@dataclass
class Texts:
    """A grammar of the texts that equal TEXT but for any token from 20 to 29 at places 3, 4."""

    output: list[TokenId] = field(default_factory=list)

    def follow(self, output: Sequence[TokenId]) -> None:
        self.output = list(output)

    def forced(self) -> TokenId | None:
        at = len(self.output)
        return TEXT[at] if at < len(TEXT) and TEXT[at] not in FREE else None

    def count_allowed(self, tokens: Sequence[TokenId]) -> int:
        wanted = [*self.output, *tokens]
        fits = [
            a == b or (b in FREE and 20 <= a < 30) for a, b in zip(wanted, TEXT, strict=False)
        ]
        return (fits.index(False) if False in fits else len(fits)) - len(self.output)


def drafting(*, drafts: bool = False) -> DraftMachine:
    lookup = GrammarProposer(Texts(), PromptLookup((1,)))
    return edges.machine(
        StreamPolicy(), limits=Limits(), drafts=drafts, lookup=lookup, max_tokens=len(TEXT)
    )


def test_what_is_forced_is_sent_without_a_draft_model() -> None:
    machine = drafting()

    outcome = machine.next(0.0, busy=False)

    assert outcome.send == (Draft(0, 0, 0, TEXT[:3], pauses=True),)
    assert [drafted.confidence for drafted in machine.session.chain] == [1.0] * 3
    assert (machine.counts.looked_up, machine.counts.drafted) == (3, 0)


def test_the_draft_model_is_asked_only_where_the_grammar_leaves_a_choice() -> None:
    machine, now, asked = drafting(drafts=True), 0.0, list[int]()
    while (step := machine.next(now, busy=False).step) is not None:
        asked.append(len(step.context))
        machine.drafted(step, [DraftToken(TEXT[len(step.context)], 0.9)], now)
        now += 0.01

    assert asked == [3, 4]
    assert machine.session.context == list(TEXT)


def test_after_a_wrong_draft_token_it_follows_the_text() -> None:
    machine = drafting(drafts=True)
    step = machine.next(0.0, busy=False).step
    assert step is not None
    machine.drafted(step, [DraftToken(20, 0.9)], 0.0)

    machine.received(Commit(0, 0, (10, 11, 12, 25, 26)))
    outcome = machine.next(0.1, busy=False)

    assert [each.tokens for each in outcome.send if isinstance(each, Draft)] == [TEXT[5:]]
    assert machine.session.context == [10, 11, 12, 25, 26, 13, 14]


def test_what_followed_before_is_proposed_only_as_far_as_the_grammar_allows() -> None:
    """Three agreeing tokens are enough for a lookup."""
    allowed = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 22, 99, 5]))
    barred = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 99, 5]))
    for each in (allowed, barred):
        each.follow(TEXT[:3], [])

    found = allowed.propose(LATENCIES)

    assert found is not None
    assert found.token == 22
    assert barred.propose(LATENCIES) is None


def test_the_draft_model_reads_ahead_only_what_the_grammar_allows() -> None:
    proposer = GrammarProposer(Texts(), PromptLookup([*TEXT[:3], 22, 99, 5, 6, 7, 8]))
    proposer.follow(TEXT[:3], [])

    assert proposer.ahead(Latencies(0.01, 0.01, 0.1)) == [22]


def test_without_lookup_only_what_is_forced_is_proposed() -> None:
    proposer = GrammarProposer(Texts(), None)

    proposer.follow(TEXT[:3], [])

    assert proposer.propose(LATENCIES) is None
    assert proposer.ahead(LATENCIES) == []
    proposer.observe_reading(2, 0.1, 0.1)
