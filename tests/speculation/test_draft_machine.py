"""The edge's machine: it asks for steps, sends in time, and learns from what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from math import inf

import pytest

from speculation.drafting.machine import DraftMachine
from speculation.drafting.outcome import DraftStep, Outcome
from speculation.drafting.policy import DraftPolicy, StreamPolicy
from speculation.drafting.session import DraftingSession
from speculation.proposing.latencies import Latencies
from speculation.proposing.prompt_lookup import PromptLookup
from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import (
    Commit,
    Draft,
    Fault,
    Finish,
    Limits,
    Open,
    Opened,
    Redraw,
    Reject,
    Sampling,
    TokenLogprob,
)
from speculation.sampling.distributions import Q_SCALE
from speculation.sampling.draft_token import DraftToken
from tests.speculation.draft_sessions import ONLY_TAIL, REJECT, STOP, Q, chain_of

LIMITS = Limits(max_verify=4, max_ahead=16)
COPIED = tuple(range(200, 240))


@dataclass
class Policy:
    """A policy that a test sets."""

    drafts: int = 100
    """Draft tokens in a chain that steps extend, at most."""

    looks_up: int = 100
    """Draft tokens in a chain that is extended without steps, at most."""

    unsent: int = 1
    """Draft tokens to send at once, at least, while steps are made."""

    asked: list[Limits] = field(default_factory=list)

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        self.asked.append(limits)
        return len(session.chain) < self.drafts

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        return len(session.chain) < self.looks_up

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        return session.unsent >= (self.unsent if drafting else 1)


def machine(
    policy: DraftPolicy | None = None,
    *,
    judge: str = "coupled",
    max_tokens: int = 100,
    readable_tokens: float = inf,
    prompt: tuple[int, ...] | None = None,
    unused: int = 0,
) -> DraftMachine:
    request = Open(
        "m", "v", (1,), Sampling(), 0, max_tokens, (STOP,), judge=judge,  # type: ignore[arg-type]
    )  # fmt: skip
    return DraftMachine(
        request,
        policy or Policy(),
        LIMITS,
        rtt_s=lambda: 0.05,
        u=repeat(0.9),
        readable_tokens=readable_tokens,
        lookup=None if prompt is None else PromptLookup(prompt),
        unused=unused,
    )


def step(edge: DraftMachine, *tokens: int, took_s: float = 0.01) -> Outcome:
    """Let the machine ask, and the draft model answer; return what the machine asked."""
    outcome = edge.next(5.0, busy=False)
    assert outcome.step
    edge.drafted(outcome.step, [DraftToken(t, 0.9) for t in tokens], 5.0 + took_s)
    return outcome


# --- what to do next


def test_a_step_follows_the_committed_text_and_the_chain() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (7, 8)))
    step(edge, 9)

    outcome = edge.next(6.0, busy=False)

    assert outcome.step == DraftStep([7, 8, 9], [], 0, 6.0)


def test_nothing_is_due_while_a_step_is_being_made() -> None:
    edge = machine(Policy(unsent=5))
    step(edge, 9)

    assert edge.next(6.0, busy=True) == Outcome()
    assert edge.session.unsent == 1


def test_while_steps_go_on_the_policy_says_when_to_send() -> None:
    edge = machine(Policy(unsent=2))
    step(edge, 7)

    assert step(edge, 8).send == ()
    assert step(edge, 9).send == (Draft(0, 0, 0, (7, 8)),)


def test_when_no_step_is_due_all_is_sent_and_the_draft_pauses() -> None:
    edge = machine(Policy(drafts=1, unsent=2))
    step(edge, 7)

    outcome = edge.next(6.0, busy=False)

    assert outcome == Outcome(send=(Draft(0, 0, 0, (7,), pauses=True),))
    assert edge.next(6.0, busy=False) == Outcome()


def test_in_separate_each_draft_token_is_sent_at_once_whatever_the_policy_says() -> None:
    edge = machine(Policy(unsent=5), judge="separate")
    asked = edge.next(0.0, busy=False).step
    assert asked
    edge.drafted(asked, [DraftToken(2, 0.9, Q)], 0.1)

    outcome = edge.next(0.1, busy=False)

    assert outcome.step
    assert outcome.send == (Draft(0, 0, 0, (2,), (Q_SCALE // 2,)),)


@pytest.mark.parametrize(("readable_tokens", "asks"), [(0, False), (2, False), (3, True)])
def test_no_step_is_asked_for_that_the_draft_model_cannot_read(
    readable_tokens: int, asks: bool
) -> None:
    edge = machine(readable_tokens=readable_tokens)
    edge.received(Commit(0, 0, (7, 8)))

    assert (edge.next(0.0, busy=False).step is not None) is asks


@pytest.mark.parametrize(
    "commit", [Commit(0, 0, (1, STOP)), Commit(0, 0, (1, 2, 3))], ids=["stop", "length"]
)
def test_no_step_is_asked_for_after_the_end_of_the_answer(commit: Commit) -> None:
    edge = machine(max_tokens=3)
    edge.received(commit)

    assert edge.next(0.0, busy=False) == Outcome()


def test_a_draft_model_that_failed_is_asked_for_nothing_more() -> None:
    edge = machine()
    step(edge, 7)

    edge.cannot_draft()

    assert edge.next(0.0, busy=False) == Outcome(send=(Draft(0, 0, 0, (7,), pauses=True),))


# --- what the draft model returned


def test_a_steps_draft_token_extends_the_chain() -> None:
    edge = machine()

    step(edge, 0)

    assert chain_of(edge.session) == [0]
    assert (edge.counts.drafted, edge.counts.stale_steps) == (1, 0)


@pytest.mark.parametrize(
    ("looks_up", "max_tokens", "tokens", "taken"),
    [
        (0, 9, (1, 2, 3), 1),  # the first was due
        (2, 9, (1, 2, 3), 2),
        (9, 2, (1, 2, 3), 2),
        (9, 9, (1, STOP, 3), 2),
        (9, 9, (1, 2, 3), 3),
    ],
)
def test_of_a_steps_draft_tokens_the_first_is_taken_and_others_while_there_is_room(
    looks_up: int, max_tokens: int, tokens: tuple[int, ...], taken: int
) -> None:
    edge = machine(Policy(looks_up=looks_up), max_tokens=max_tokens)

    step(edge, *tokens)

    assert chain_of(edge.session) == list(tokens[:taken])
    assert edge.counts.drafted == taken


def test_a_step_whose_chain_broke_meanwhile_is_dropped_but_its_time_is_learned() -> None:
    edge = machine()
    step(edge, 7)
    asked = edge.next(1.0, busy=False).step
    assert asked
    edge.received(Commit(0, 0, (8,)))

    edge.drafted(asked, [DraftToken(9, 0.9)], 1.04)

    assert edge.session.chain == []
    assert (edge.counts.drafted, edge.counts.stale_steps) == (1, 1)
    assert edge.latencies.draft_s == pytest.approx(0.04)


def test_a_step_that_the_text_overtook_is_dropped_as_well() -> None:
    edge = machine()
    asked = edge.next(1.0, busy=False).step
    assert asked
    edge.received(Commit(0, 0, (8,)))

    edge.drafted(asked, [DraftToken(8, 0.9)], 1.04)

    assert edge.session.chain == []
    assert edge.counts.stale_steps == 1


def test_draft_time_is_a_running_mean_over_steps_that_read_one_token() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)  # it reads the prompt
    assert edge.latencies == Latencies(0.05, 0.0, 0.0)

    step(edge, 2, took_s=0.02)
    step(edge, 3, took_s=0.04)

    assert edge.latencies.draft_s == pytest.approx(0.025)


def test_a_step_after_a_break_or_over_several_tokens_teaches_no_draft_time() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)
    edge.received(Commit(0, 0, (5,)))
    step(edge, 2, took_s=9.0)  # the draft model goes back first
    edge.received(Commit(1, 1, (2, 3, 4)))
    step(edge, 5, took_s=9.0)  # it reads three tokens

    assert edge.latencies.draft_s == 0.0
    step(edge, 6, took_s=0.02)

    assert edge.latencies.draft_s == pytest.approx(0.02)


def test_a_step_that_drafted_several_tokens_has_read_all_but_the_last() -> None:
    edge = machine()
    step(edge, 1, 2, 3, took_s=9.0)

    step(edge, 4, took_s=0.02)

    assert edge.latencies.draft_s == pytest.approx(0.02)


# --- what was written before


def test_a_copy_is_proposed_to_its_end() -> None:
    edge = machine(Policy(looks_up=30, drafts=0), prompt=(*COPIED, 1, 2), readable_tokens=0)
    edge.received(Commit(0, 0, COPIED[:16]))

    (draft,) = edge.next(0.0, busy=False).send

    assert draft.start == 16
    assert draft.tokens[:26] == (*COPIED[16:], 1, 2)
    assert len(draft.tokens) == edge.counts.looked_up == 30
    assert edge.counts.drafted == 0


def test_nothing_is_proposed_after_a_stop_token() -> None:
    edge = machine(prompt=(*COPIED[:20], STOP, *COPIED[20:]), readable_tokens=0)
    edge.received(Commit(0, 0, COPIED[:18]))

    edge.next(0.0, busy=False)

    assert chain_of(edge.session) == [218, 219, STOP]


def test_what_is_looked_up_is_unread_only_where_no_step_can_be_made() -> None:
    """Before a step and a pass were timed, an unread token does not pay."""
    edge = machine(prompt=COPIED)
    edge.received(Commit(0, 0, COPIED[:16]))
    assert edge.next(0.0, busy=False).step

    edge.cannot_draft()
    edge.next(0.0, busy=False)

    assert edge.counts.looked_up > 0


def test_a_step_reads_ahead_what_followed_and_teaches_what_reading_takes() -> None:
    edge = machine(Policy(looks_up=0), prompt=COPIED)
    edge.received(Commit(0, 0, COPIED[:8]))
    step(edge, COPIED[8], took_s=9.0)
    step(edge, COPIED[9], took_s=0.01)

    asked = edge.next(0.0, busy=False).step
    assert asked
    assert asked.ahead == list(COPIED[10:17])
    edge.drafted(asked, [DraftToken(COPIED[10], 0.9)], 7.0)  # a second for each

    following = edge.next(8.0, busy=False).step
    assert following
    assert following.ahead == []
    assert edge.latencies.draft_s == pytest.approx(0.01)


def test_what_is_sent_may_make_room_for_more() -> None:
    class Rounds(Policy):
        """Two draft tokens wait at most."""

        def may_look_up(self, session: DraftingSession, *_: object) -> bool:
            return session.unsent < 2 and len(session.chain) < 5

    edge = machine(Rounds(drafts=0), prompt=COPIED, readable_tokens=0)
    edge.received(Commit(0, 0, COPIED[:16]))

    sent = edge.next(0.0, busy=False).send

    assert [len(draft.tokens) for draft in sent if isinstance(draft, Draft)] == [2, 2, 1]


# --- what the verifier sent


def test_a_commit_is_passed_on_without_what_was_known_before() -> None:
    edge = machine()
    logprobs = tuple(TokenLogprob(-float(i)) for i in range(3))
    whole = Commit(0, 0, (4, 5, 6), accepted=2, pass_s=0.1, logprobs=logprobs)
    edge.received(Commit(0, 0, (4,)))

    assert edge.received(whole) == Outcome(
        commit=Commit(0, 1, (5, 6), accepted=1, pass_s=0.1, logprobs=logprobs[1:])
    )
    assert edge.received(whole) == Outcome()
    assert edge.session.committed == [4, 5, 6]


def test_a_commit_that_is_all_new_is_passed_on_as_it_is() -> None:
    commit = Commit(0, 0, (0,), pass_s=0.1)

    assert machine().received(commit).commit == commit


def test_accepted_tokens_that_were_known_are_not_counted_again() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (4, 5)))

    outcome = edge.received(Commit(0, 0, (4, 5, 6), accepted=1))

    assert outcome.commit == Commit(0, 2, (6,), accepted=0)


def test_pass_latency_is_a_running_mean_without_the_pass_that_read_the_prompt() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (4,), pass_s=9.0))
    edge.received(Commit(0, 1, (4,), pass_s=0.0))  # a recovered token takes no pass
    assert edge.latencies.pass_s == 0.0

    edge.received(Commit(0, 2, (4,), pass_s=0.1))
    edge.received(Commit(0, 3, (4,), pass_s=0.3))
    edge.received(Commit(0, 4, (4,), pass_s=0.0))

    assert edge.latencies.pass_s == pytest.approx(0.15)


def test_the_recovered_token_is_sent_at_once() -> None:
    edge = machine(Policy(unsent=5), judge="separate")
    edge.session.extend(DraftToken(1, 0.9, Q))
    edge.next(0.0, busy=False)

    outcome = edge.received(REJECT)

    assert outcome == Outcome(send=(Draft(1, 0, 0, (3,), (), forced=True),))


def test_a_redraw_is_sent_where_the_samples_ran_out() -> None:
    edge = machine(judge="separate")
    edge.session.extend(DraftToken(2, 0.9, Q))
    edge.next(0.0, busy=False)

    assert edge.received(ONLY_TAIL) == Outcome(send=(Redraw(1, 0),))


def test_limits_are_those_of_the_opened_session() -> None:
    policy = Policy()
    edge = machine(policy)
    edge.next(0.0, busy=False)

    assert edge.received(Opened("s", Limits(max_ahead=3))) == Outcome()

    edge.next(0.0, busy=False)
    assert policy.asked == [LIMITS, Limits(max_ahead=3)]


def test_a_finish_is_passed_on_and_a_fault_is_the_links_matter() -> None:
    assert machine().received(Finish("stop")) == Outcome(finish=Finish("stop"))
    assert machine().received(Fault("a", "b")) == Outcome()


def test_a_lie_is_raised_and_nothing_changes() -> None:
    edge = machine()
    step(edge, 7)
    before = (repr(vars(edge.session)), edge.latencies)

    for lie in (Commit(0, 5, (1,), pass_s=9.0), Reject(0, 0, ((1, 1.0),), 0.0)):
        with pytest.raises(RemoteProtocolError):
            edge.received(lie)

    assert (repr(vars(edge.session)), edge.latencies) == before


def test_the_count_of_unused_commits_goes_on_from_the_session_before() -> None:
    edge = machine(StreamPolicy(), unused=1000)
    edge.received(Commit(0, 0, (1,) * 8))
    edge.received(Commit(0, 8, (1,) * 12, pass_s=0.1))

    assert edge.next(0.0, busy=False) == Outcome()  # it rests from the beginning
