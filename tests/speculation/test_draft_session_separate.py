"""The edge's record in `separate`: weights are sent, and recovered tokens drawn."""

from __future__ import annotations

from itertools import repeat

import pytest

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Commit, Draft, Redraw, Reject
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.sampling.draft_token import DraftToken
from tests.speculation.draft_sessions import ONLY_TAIL, REJECT, Q, edge


def test_in_separate_the_weight_of_each_draft_token_goes_with_it() -> None:
    assert edge(1, 2, q=Q).flush() == Draft(0, 0, 0, (1, 2), (Q_SCALE // 2,) * 2)


def test_a_reject_needs_a_draft_token_and_the_judge_separate() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^Reject.position: "):
        edge().rejected(REJECT, repeat(0.5))
    with pytest.raises(RemoteProtocolError, match="only in judge `separate`"):
        edge(1).rejected(REJECT, repeat(0.5))


def test_a_recovered_token_begins_an_epoch_of_its_own() -> None:
    session = edge(1, 2, q=Q)
    session.flush()

    assert session.rejected(REJECT, repeat(0.5)) is None

    assert session.context == [3]
    assert session.survival == 1.0
    assert session.flush() == Draft(1, 0, 0, (3,), (), forced=True)


def test_draft_tokens_after_a_recovered_token_go_with_it_or_after_it() -> None:
    together, apart = edge(1, q=Q), edge(1, q=Q)
    for session in (together, apart):
        session.flush()
        session.rejected(REJECT, repeat(0.5))
    apart.flush()
    for session in (together, apart):
        session.extend(DraftToken(2, 0.5, Q))

    assert together.flush() == Draft(1, 0, 0, (3, 2), (Q_SCALE // 2,), forced=True)
    assert apart.flush() == Draft(1, 1, 1, (2,), (Q_SCALE // 2,))


def test_a_reject_received_again_makes_the_same_recovered_token_be_sent_again() -> None:
    session = edge(1, q=Q)
    session.flush()
    session.rejected(REJECT, repeat(0.5))
    first = session.flush()

    assert session.rejected(REJECT, repeat(0.0)) is None

    assert session.flush() == first


def test_a_reject_of_a_committed_position_is_old() -> None:
    session = edge()
    session.receive(Commit(0, 0, (4,)))

    assert session.rejected(REJECT, repeat(0.5)) is None


def test_a_tail_that_runs_out_asks_for_more_until_an_answer_of_its_epoch_comes() -> None:
    session = edge(2, q=Q)
    session.flush()

    redraw = session.rejected(ONLY_TAIL, repeat(0.9))

    assert redraw == Redraw(1, 0)
    assert session.rejected(ONLY_TAIL, repeat(0.0)) == redraw  # the same Reject again
    fresh = Reject(1, 0, ONLY_TAIL.head, 1.0, ((3, 0.9),))
    assert session.rejected(fresh, repeat(0.9)) is None
    assert session.flush() == Draft(2, 0, 0, (3,), (), forced=True)


def test_a_recovered_token_is_confirmed_like_any_draft_token() -> None:
    session = edge(1, q=Q)
    session.flush()
    session.rejected(REJECT, repeat(0.5))
    session.flush()

    assert session.receive(Commit(1, 0, (3,))) == (3,)

    assert (session.chain, session.epoch) == ([], 1)


def test_a_rejected_token_is_a_miss_and_its_recovered_token_is_no_hit() -> None:
    session = edge(1, q=Q)

    session.rejected(REJECT, repeat(0.0))
    session.receive(Commit(1, 0, (3,)))

    assert session.committed == [3]
    assert (session.misses, session.unused) == (1, 0)
