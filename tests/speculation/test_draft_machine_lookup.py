"""The edge's machine proposes what was written before, and has it read ahead."""

from __future__ import annotations

import pytest

from picospec.speculation.distributions import DraftToken
from picospec.speculation.drafting import DraftingSession
from picospec.speculation.lookup import PromptLookup
from picospec.speculation.messages import Commit, Draft
from tests.speculation.edges import STOP, Policy, chain_of, machine, step

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


def test_nothing_is_proposed_after_a_stop_token() -> None:
    edge = machine(lookup=PromptLookup((*COPIED[:20], STOP, *COPIED[20:])), drafts=False)
    edge.received(Commit(0, 0, COPIED[:18]))

    edge.next(0.0, busy=False)

    assert chain_of(edge.session) == [218, 219, STOP]


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
