"""The edge's machine and its record: what it asks for, sends, and takes for a lie."""

from __future__ import annotations

import pytest

from speculation.draft_machine import DraftStep, Outcome
from speculation.draft_policy import (
    StreamPolicy,
)
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.lookup import PromptLookup
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Fault,
    Finish,
    Opened,
    Reject,
    TokenLogprob,
    Totals,
)
from speculation.model_facts import MAX_VOCABULARY, Limits
from speculation.proposer import Latencies
from tests.speculation.edges import LIMITS, STOP, Policy, Q, chain_of, drafting, machine, step


def test_a_step_follows_the_committed_text_and_the_chain() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (7, 8)))
    step(edge, 9)

    outcome = edge.next(6.0, busy=False)

    assert outcome.step == DraftStep([7, 8, 9], [], 0, 6.0)


def test_while_steps_go_on_the_policy_says_when_to_send() -> None:
    edge = machine(Policy(unsent=2))
    step(edge, 7)

    assert step(edge, 8).send == ()
    assert step(edge, 9).send == (Draft(0, 0, 0, (7, 8)),)


def test_no_step_is_asked_for_without_a_draft_model() -> None:
    assert machine(drafts=False).next(0.0, busy=False) == Outcome()


@pytest.mark.parametrize("tokens", [(1, STOP), (1, 2, 3)], ids=["stop", "length"])
def test_no_step_is_asked_for_after_the_end_of_the_answer(tokens: tuple[int, ...]) -> None:
    edge = machine(max_tokens=3)
    edge.received(Commit(0, 0, tokens))

    assert edge.next(0.0, busy=False) == Outcome()


def test_a_draft_model_that_failed_is_asked_for_nothing_more() -> None:
    edge = machine()
    step(edge, 7)

    edge.stop_drafting()

    assert edge.next(0.0, busy=False) == Outcome(send=(Draft(0, 0, 0, (7,), pauses=True),))


def test_the_chain_covers_a_pass_and_a_round_trip() -> None:
    edge = machine(StreamPolicy(), limits=Limits(max_verify=8, max_ahead=64))
    step(edge, 1)
    step(edge, 2)
    edge.received(Commit(0, 0, (1,), pass_s=5.0))  # it also read the prompt
    edge.received(Commit(0, 1, (2,), pass_s=0.049))

    for _ in range(30):
        if edge.next(5.0, busy=False).step:
            step(edge, 3)

    assert len(edge.session.chain) == 8 + 10


@pytest.mark.parametrize(
    ("looks_up", "max_tokens", "tokens", "taken"),
    [
        (0, 9, (0, 2, 3), 1),  # the first was due
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
    assert (edge.counts.drafted, edge.counts.stale_steps) == (taken, 0)


def test_a_step_may_complete_no_token_and_a_later_one_several() -> None:
    """A draft model of another vocabulary writes parts of the target's tokens."""
    edge = machine()
    step(edge, 7, took_s=9.0)

    for drafts in (), (), (1, 2):
        assert chain_of(edge.session) == [7]
        step(edge, *drafts, took_s=0.01)

    assert chain_of(edge.session) == [7, 1, 2]
    assert edge.latencies.draft_s == pytest.approx(3 * 0.01 / 2)


@pytest.mark.parametrize(
    ("meanwhile", "chain"),
    [((8,), []), ((7, 9), []), ((7,), [9])],
    ids=["broke", "was-overtaken", "was-confirmed"],
)
def test_a_step_whose_chain_is_gone_is_dropped_but_its_time_is_learned(
    meanwhile: tuple[int, ...], chain: list[int]
) -> None:
    edge = machine()
    step(edge, 7)
    asked = edge.next(1.0, busy=False).step
    assert asked
    edge.received(Commit(0, 0, meanwhile))

    edge.drafted(asked, [DraftToken(9, 0.9)], 1.04)

    assert chain_of(edge.session) == chain
    assert (edge.counts.drafted, edge.counts.stale_steps) == (1 + len(chain), 1 - len(chain))
    assert edge.latencies.draft_s == pytest.approx(0.04)


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


def test_a_step_over_several_tokens_shows_the_most_that_one_takes() -> None:
    edge = machine()
    step(edge, 1, took_s=9.0)
    step(edge, 2, took_s=0.5)
    edge.received(Commit(0, 0, (1, 2, 3, 4)))
    step(edge, 5, took_s=0.1)

    assert edge.latencies.draft_s == pytest.approx(0.1)


@pytest.mark.parametrize("room", [3, 2])
def test_a_step_that_drafted_several_tokens_has_read_all_but_the_last(room: int) -> None:
    edge = machine(Policy(looks_up=room))
    step(edge, 1, 2, 3, took_s=9.0)

    step(edge, 4, took_s=0.02)

    assert edge.latencies.draft_s == pytest.approx(0.02)


# The edge's machine passes on what the verifier sends, and learns from it.


def test_a_commit_is_passed_on_without_what_was_known_before() -> None:
    edge = machine()
    logprobs = tuple(TokenLogprob(-float(i)) for i in range(3))
    first = Commit(0, 0, (4,), pass_s=0.1)
    whole = Commit(0, 0, (4, 5, 6), accepted=2, pass_s=0.1, logprobs=logprobs)

    assert edge.received(first) == Outcome(commit=first)
    assert edge.received(whole) == Outcome(
        commit=Commit(0, 1, (5, 6), accepted=1, pass_s=0.1, logprobs=logprobs[1:])
    )
    assert edge.received(whole) == Outcome()
    assert edge.session.committed == [4, 5, 6]


def test_pass_latency_is_a_running_mean_without_the_pass_that_read_the_prompt() -> None:
    edge = machine()
    edge.received(Commit(0, 0, (4,), pass_s=9.0))
    edge.received(Commit(0, 1, (4,), pass_s=0.0))  # a recovered token takes no pass
    assert edge.latencies.pass_s == 0.0

    edge.received(Commit(0, 2, (4,), pass_s=0.1))
    edge.received(Commit(0, 3, (4,), pass_s=0.3))
    edge.received(Commit(0, 4, (4,), pass_s=0.0))

    assert edge.latencies.pass_s == pytest.approx(0.15)


def test_limits_are_those_of_the_opened_session() -> None:
    policy = Policy()
    edge = machine(policy)
    edge.next(0.0, busy=False)

    assert edge.received(Opened("s", Limits(max_ahead=3))) == Outcome()

    edge.next(0.0, busy=False)
    assert policy.asked == [LIMITS, Limits(max_ahead=3)]


def test_a_finish_with_more_tokens_of_the_verifiers_own_than_accepted_is_a_lie() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^Finish\.verifier_accepted: "):
        machine().received(
            Finish("stop", Totals(passes=2, judged=2, accepted=1, verifier_accepted=2))
        )


def test_what_the_target_had_of_the_prompt_is_known_from_the_session_of_the_first_token() -> (
    None
):
    edge = machine()

    with pytest.raises(RemoteProtocolError, match=r"^CachedPromptTokens\.tokens: "):
        edge.received(CachedPromptTokens(len(edge.opening().prompt) + 1))
    edge.received(CachedPromptTokens(1))
    edge.received(Commit(0, 0, (4,)))
    edge.received(CachedPromptTokens(2))

    assert edge.counts.cached_tokens == 1


def test_a_finish_is_passed_on_and_a_fault_is_the_links_matter() -> None:
    assert machine().received(Finish("stop")) == Outcome(finish=Finish("stop"))
    assert machine().received(Fault("a", "b")) == Outcome()


@pytest.mark.parametrize(
    "lie",
    [
        Commit(0, 0, (MAX_VOCABULARY,)),
        Reject(0, 0, 0, ((MAX_VOCABULARY, 1.0),), 0.0),
        Reject(0, 0, 0, ((1, 0.5),), 0.5, ((MAX_VOCABULARY, 0.1),)),
    ],
)
def test_what_is_no_token_of_the_target_is_a_lie(lie: Commit | Reject) -> None:
    with pytest.raises(RemoteProtocolError, match="is no token"):
        machine().received(lie)


def test_a_lie_is_raised_and_nothing_changes() -> None:
    edge = machine()
    step(edge, 7)
    before = (repr(vars(edge.session)), edge.latencies)

    for lie in (Commit(0, 5, (1,), pass_s=9.0), Reject(0, 0, 0, ((1, 1.0),), 0.0)):
        with pytest.raises(RemoteProtocolError):
            edge.received(lie)

    assert (repr(vars(edge.session)), edge.latencies) == before


# The edge's machine proposes what was written before, and has it read ahead.

COPIED = tuple(range(200, 240))


def test_a_copy_is_proposed_to_its_end() -> None:
    lookup = PromptLookup((*COPIED, 1, 2))
    edge = machine(Policy(looks_up=30, drafts=0), lookup=lookup, drafts=False)
    edge.received(Commit(0, 0, COPIED[:16]))

    (draft,) = edge.next(0.0, busy=False).send

    assert isinstance(draft, Draft)
    assert (draft.start, draft.tokens[:26]) == (16, (*COPIED[16:], 1, 2))
    assert len(draft.tokens) == edge.counts.looked_up == 30
    assert edge.counts.drafted == 0


def test_what_is_looked_up_is_unread_only_where_no_step_can_be_made() -> None:
    """Before a step and a pass were timed, an unread token does not pay."""
    edge = machine(lookup=PromptLookup(COPIED))
    edge.received(Commit(0, 0, COPIED[:16]))
    assert edge.next(0.0, busy=False).step

    edge.stop_drafting()
    edge.next(0.0, busy=False)

    assert edge.counts.looked_up > 0


def test_a_step_reads_ahead_what_followed_and_teaches_what_reading_takes() -> None:
    edge = machine(Policy(looks_up=0), lookup=PromptLookup(COPIED))
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


def test_what_a_step_reads_after_the_target_went_ahead_is_learned_too() -> None:
    lookup = PromptLookup(COPIED)
    edge = machine(lookup=lookup)
    step(edge, 1, took_s=9.0)
    step(edge, 2, took_s=0.01)
    edge.received(Commit(0, 0, (1, 2, 3, 4, 5)))

    step(edge, 6, took_s=0.016)  # it reads three tokens more than one

    assert lookup._read_s == pytest.approx(0.002)


def test_what_is_sent_may_make_room_for_more() -> None:
    class Rounds(Policy):
        """Two draft tokens wait at most."""

        def may_look_up(self, session: DraftingSession, *_: object) -> bool:
            return session.unsent < 2 and len(session.chain) < 5

    edge = machine(Rounds(drafts=0), lookup=PromptLookup(COPIED), drafts=False)
    edge.received(Commit(0, 0, COPIED[:16]))

    sent = edge.next(0.0, busy=False).send

    assert [len(draft.tokens) for draft in sent if isinstance(draft, Draft)] == [2, 2, 1]


# The edge's record: its chain grows, travels, is confirmed or broken; a lie is named.


def test_nothing_follows_a_stop_token_drafted_or_committed_nor_max_tokens() -> None:
    drafted, committed, full = drafting(4, STOP), drafting(), drafting(4, 5, max_tokens=3)
    assert full.may_extend
    committed.receive(Commit(0, 0, (4, STOP)))
    full.receive(Commit(0, 0, (4, 5, 6)))

    for session in (drafted, committed, full):
        assert not session.may_extend
        with pytest.raises(LocalProtocolError):
            session.extend(DraftToken(5, 0.5))


def test_chains_that_begin_wrong_are_counted_until_a_draft_token_is_accepted() -> None:
    session = drafting(4)

    session.receive(Commit(0, 0, (1,)))
    assert (session.misses, session.since_break) == (1, 0)
    session.extend(DraftToken(4, 0.5))
    session.receive(Commit(0, 1, (2, 3)))
    assert (session.misses, session.since_break) == (2, 0)
    session.receive(Commit(0, 3, (3,)))
    assert (session.misses, session.since_break) == (2, 1)
    session.extend(DraftToken(4, 0.5))
    session.extend(DraftToken(5, 0.5))
    session.receive(Commit(0, 4, (4, 6)))

    assert (session.misses, session.since_break) == (0, 0)


def test_each_draft_token_is_sent_once() -> None:
    session = drafting(4, 5)
    assert session.flush() == Draft(0, 0, 0, (4, 5))
    assert session.flush() is None

    session.extend(DraftToken(6, 0.5))

    assert session.unsent == 1
    assert session.flush(pauses=True) == Draft(0, 2, 2, (6,), pauses=True)


def test_draft_tokens_confirmed_before_they_were_sent_are_not_sent() -> None:
    session = drafting(4, 5, 6)
    session.receive(Commit(0, 0, (4, 5)))

    assert session.flush() == Draft(0, 2, 0, (6,))


@pytest.mark.parametrize(
    ("tokens", "chain", "epoch"),
    [((4, 5), [6], 0), ((4, 9), [], 1), ((4, 5, 6, 7), [], 0)],
    ids=["agrees", "differs", "goes-beyond"],
)
def test_a_commit_shortens_the_chain_or_breaks_it(
    tokens: tuple[int, ...], chain: list[int], epoch: int
) -> None:
    session = drafting(4, 5, 6)
    session.flush()

    assert session.receive(Commit(0, 0, tokens)) == tokens

    assert (session.committed, chain_of(session)) == ([*tokens], chain)
    session.extend(DraftToken(7, 0.5))
    assert session.flush() == Draft(epoch, len(tokens) + len(chain), len(chain), (7,))


@pytest.mark.parametrize(
    ("commit", "tokens"),
    [
        (Commit(0, 0, (4, 5)), ()),
        (Commit(0, 1, (5, 6)), (6,)),
        (Commit(0, 0, (4,)), ()),
        (Commit(0, 2, ()), ()),
    ],
)
def test_what_is_known_already_is_passed_over(commit: Commit, tokens: tuple[int, ...]) -> None:
    session = drafting()
    session.receive(Commit(0, 0, (4, 5)))

    assert session.receive(commit) == tokens


LIES: dict[str, tuple[Commit | Reject, str]] = {
    "a gap": (Commit(0, 2, (7,)), "Commit.start"),
    "another past": (Commit(0, 0, (5, 6)), "Commit.tokens"),
    "more than asked for": (Commit(0, 1, (1,) * 10), "Commit.tokens"),
    "more accepted than committed": (Commit(0, 1, (1,), accepted=2), "Commit.accepted"),
    "more with its own": (
        Commit(0, 1, (1,), accepted=1, verifier_accepted=1), "Commit.accepted",
    ),
    "logprobs of other tokens": (
        Commit(0, 1, (1, 2), logprobs=(TokenLogprob(-1.0),)), "Commit.logprobs",
    ),
    "no logprobs of tokens": (Commit(0, 1, (1, 2), logprobs=()), "Commit.logprobs"),
    "a rejection of what was not sent": (Reject(0, 2, 0, (), 0.0), "Reject.position"),
    "a rejection ahead": (Reject(0, 3, 0, ((3, 1.0),), 0.0), "Reject.position"),
    "a rejection of another epoch": (Reject(1, 1, 0, ((3, 1.0),), 0.0), "Reject.epoch"),
}  # fmt: skip


@pytest.mark.parametrize(("lie", "field"), LIES.values(), ids=LIES)
def test_a_lying_verifier_is_named_and_changes_nothing(
    lie: Commit | Reject, field: str
) -> None:
    session = drafting()
    session.receive(Commit(0, 0, (4,)))
    session.extend(DraftToken(1, 0.5, Q))
    session.flush()
    session.extend(DraftToken(2, 0.5, Q))
    before = repr(vars(session))
    take = session.receive if isinstance(lie, Commit) else session.before

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        take(lie)  # type: ignore[arg-type]

    assert repr(vars(session)) == before
