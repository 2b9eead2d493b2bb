"""The steps that a DraftMachine asks for: what they read ahead, and what their time teaches."""

from __future__ import annotations

import pytest

from picospec.speculation.drafting.machine import DraftMachine
from picospec.speculation.drafting.outcome import DraftStep
from picospec.speculation.drafting.policy import StreamPolicy, window
from picospec.speculation.drafting.rest import MAX_MISSES
from picospec.speculation.judges.judges import JUDGES
from picospec.speculation.proposing.prompt_lookup import PromptLookup
from picospec.speculation.protocol.messages import Commit, Limits, Open, Sampling, TokenId
from picospec.speculation.sampling.draft_token import DraftToken

LIMITS = Limits(max_verify=4, max_ahead=16)
PROMPT = (*range(20, 36), 9, 9, 9, 9)
"""As long as its first token, so that the draft model repeats it."""

STEP_S, READ_S = 0.01, 0.002
"""Of the draft model: a step, and each token that it reads besides."""


class Edge:
    """A machine and its driver, whose draft model drafts the length of its context."""

    def __init__(
        self,
        *,
        max_tokens: int = 100,
        prompt: tuple[TokenId, ...] = PROMPT,
        lookup: bool = True,
        rtt_s: float = 0.0,
        limits: Limits = LIMITS,
    ) -> None:
        self.lookup = PromptLookup(prompt)
        request = Open("m", "v", prompt, Sampling(), 0, max_tokens, ())
        self.machine = DraftMachine(
            request,
            StreamPolicy(),
            limits,
            JUDGES[request.judge].edge(request, iter(())),
            rtt_s=lambda: rtt_s,
            drafts=True,
            lookup=self.lookup if lookup else None,
        )
        self.now_s = 0.0
        self._prompt_tokens = len(prompt)

    @property
    def due(self) -> bool:
        """Whether the machine asks for a step."""
        return self.machine.next(self.now_s, busy=False).step is not None

    def step(self, *meanwhile: Commit) -> DraftStep:
        """Make the step that the machine asks for. meanwhile: what arrives before it ends."""
        step = self.machine.next(self.now_s, busy=False).step
        assert step is not None
        self.now_s += STEP_S + READ_S * len(step.ahead)
        for commit in meanwhile:
            self.machine.received(commit)
        self.machine.drafted(step, self._drafts(step), self.now_s)
        return step

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def _drafts(self, step: DraftStep) -> list[DraftToken]:
        tokens = []
        for n, read in enumerate([*step.ahead, None]):
            tokens.append(DraftToken(self._prompt_tokens + len(step.context) + n, 1.0))
            if tokens[-1].token != read:
                break
        return tokens

    @property
    def chain(self) -> list[TokenId]:
        return [drafted.token for drafted in self.machine.session.chain]


def test_three_repeated_tokens_are_enough_to_read_what_followed_them() -> None:
    edge = Edge()

    edge.steps(3)
    assert edge.chain == [20, 21, 22]
    step = edge.step()

    assert (step.context, step.ahead) == ([20, 21, 22], [23, 24, 25])
    assert edge.chain == [20, 21, 22, 23, 24, 25, 26]
    assert (edge.machine.counts.drafted, edge.machine.counts.looked_up) == (7, 0)


def test_tokens_are_read_in_vain_where_the_draft_model_goes_on_otherwise() -> None:
    edge = Edge(prompt=(*range(20, 24), 99, *range(25, 36), 9, 9, 9, 9))
    edge.steps(3)

    step = edge.step()

    assert step.ahead == [23, 99, 25]
    assert edge.chain == [20, 21, 22, 23, 24]


@pytest.mark.parametrize(("max_tokens", "most"), [(100, LIMITS.max_ahead), (9, 9)])
def test_no_step_goes_beyond_what_the_verifier_keeps_or_the_answer_holds(
    max_tokens: int, most: int
) -> None:
    edge = Edge(max_tokens=max_tokens)

    while edge.due:
        edge.step()

    assert len(edge.chain) == most


def test_the_latency_of_a_step_is_that_of_steps_that_read_one_token() -> None:
    edge = Edge()

    edge.step()
    assert edge.machine.latencies.draft_s == 0.0  # it also read the prompt
    edge.steps(3)

    assert edge.machine.latencies.draft_s == pytest.approx(STEP_S)
    assert edge.lookup._reading._s == pytest.approx(READ_S)


def test_what_was_read_but_had_no_room_in_the_chain_does_not_count_as_read_again() -> None:
    edge = Edge()
    while edge.due:
        edge.step()
    read_s = edge.lookup._reading._s
    edge.machine.received(Commit(0, 0, tuple(edge.chain[:1])))

    step = edge.step()  # it reads 15 tokens ahead, of which one has room

    assert (len(step.context), len(step.ahead)) == (LIMITS.max_ahead, 15)
    assert edge.lookup._reading._s == pytest.approx(read_s)


def test_what_a_step_reads_after_the_target_went_ahead_is_learned_too() -> None:
    edge = Edge()
    edge.steps(2)
    edge.machine.received(Commit(0, 0, (20, 21, 60, 61, 62)))
    step = edge.machine.next(edge.now_s, busy=False).step
    assert step is not None

    edge.machine.drafted(step, [DraftToken(7, 1.0)], edge.now_s + STEP_S + 3 * READ_S)

    assert edge.machine.latencies.draft_s == pytest.approx(STEP_S)
    assert edge.lookup._reading._s == pytest.approx(READ_S)


def test_after_a_break_a_step_teaches_no_latency() -> None:
    edge = Edge()
    edge.steps(4)
    edge.machine.received(Commit(0, 0, (20, 5)))
    step = edge.machine.next(edge.now_s, busy=False).step
    assert step is not None

    edge.machine.drafted(step, [DraftToken(22, 1.0)], edge.now_s + 9.9)

    assert edge.machine.session.epoch == 1
    assert edge.chain == [22]
    assert edge.machine.latencies.draft_s == pytest.approx(STEP_S)
    assert edge.lookup._reading._s == pytest.approx(READ_S)


def test_draft_tokens_of_a_chain_that_broke_meanwhile_are_all_dropped() -> None:
    edge = Edge()
    edge.steps(3)

    edge.step(Commit(0, 0, (20, 5)))

    assert (edge.chain, edge.machine.counts.drafted) == ([], 3)
    assert edge.machine.counts.stale_steps == 1


def test_draft_tokens_that_follow_a_chain_confirmed_meanwhile_extend_it() -> None:
    edge = Edge()
    edge.steps(3)

    edge.step(Commit(0, 0, (20, 21)))

    assert edge.chain == [22, 23, 24, 25, 26]
    assert edge.machine.counts.stale_steps == 0


def test_the_chain_covers_a_pass_and_a_round_trip() -> None:
    limits = Limits(max_verify=8, max_ahead=64)
    edge = Edge(rtt_s=0.1, lookup=False, limits=limits)
    edge.steps(2)
    edge.machine.received(Commit(0, 0, (20,), pass_s=5.0))  # it also read the prompt
    edge.machine.received(Commit(0, 1, (21,), pass_s=0.049))

    while edge.due:
        edge.step()

    assert edge.machine.latencies.pass_s == pytest.approx(0.049)
    assert len(edge.chain) == window(limits, edge.machine.latencies) == 8 + 15


def test_a_recovered_token_says_nothing_of_a_pass() -> None:
    edge = Edge()
    edge.machine.received(Commit(0, 0, (20,), pass_s=0.3))
    edge.machine.received(Commit(0, 1, (21,), pass_s=0.2))

    edge.machine.received(Commit(0, 2, (22,), pass_s=0.0))

    assert edge.machine.latencies.pass_s == pytest.approx(0.2)


def test_after_many_misses_the_target_is_left_alone_for_a_while() -> None:
    edge = Edge(lookup=False)

    drafted = []
    for position in range(MAX_MISSES + 4):
        drafted.append(edge.due)
        if drafted[-1]:
            edge.step()
        edge.machine.received(Commit(0, position, (1,)))

    assert drafted == [True] * MAX_MISSES + [False, True, False, False]


def test_a_step_may_complete_no_token_and_a_later_one_several() -> None:
    """A draft model of another vocabulary writes parts of the target's tokens."""
    edge = Edge(lookup=False)
    edge.step()
    before = edge.chain

    for drafts in [], [], [DraftToken(1, 1.0), DraftToken(2, 1.0)]:
        assert edge.chain == before
        step = edge.machine.next(edge.now_s, busy=False).step
        assert step is not None
        edge.now_s += STEP_S
        edge.machine.drafted(step, drafts, edge.now_s)

    assert edge.chain == [*before, 1, 2]
    assert edge.machine.latencies.draft_s == pytest.approx(1.5 * STEP_S)
