"""The edge's half in `separate`: weights go with the guesses, the rejected ones are replaced."""

from __future__ import annotations

from itertools import repeat

import pytest

from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Commit, Draft, Redraw, Reject
from speculation.sampling.distributions import Q_SCALE
from speculation.sampling.draft_token import DraftToken
from tests.speculation.edges import REFUSE, TAILED, Q, edge


def test_in_separate_the_weight_of_each_guess_goes_with_it() -> None:
    assert edge(1, 2, q=Q).flush() == Draft(0, 0, 0, (1, 2), (Q_SCALE // 2,) * 2)


def test_a_refusal_needs_a_draft_and_the_judge_separate() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^Reject.position: "):
        edge().rejected(REFUSE, repeat(0.5))
    with pytest.raises(RemoteProtocolError, match="only in judge `separate`"):
        edge(1).rejected(REFUSE, repeat(0.5))


def test_a_refused_guess_is_replaced_in_an_epoch_of_its_own() -> None:
    session = edge(1, 2, q=Q)
    session.flush()

    assert session.rejected(REFUSE, repeat(0.5)) is None

    assert session.guessed == [3]
    assert session.survival == 1.0
    assert session.flush() == Draft(1, 0, 0, (3,), (), forced=True)


def test_guesses_after_a_replacement_go_with_it_or_after_it() -> None:
    together, apart = edge(1, q=Q), edge(1, q=Q)
    for session in (together, apart):
        session.flush()
        session.rejected(REFUSE, repeat(0.5))
    apart.flush()
    for session in (together, apart):
        session.extend(DraftToken(2, 0.5, Q))

    assert together.flush() == Draft(1, 0, 0, (3, 2), (Q_SCALE // 2,), forced=True)
    assert apart.flush() == Draft(1, 1, 1, (2,), (Q_SCALE // 2,))


def test_a_refuse_seen_again_makes_the_same_replacement_be_sent_again() -> None:
    session = edge(1, q=Q)
    session.flush()
    session.rejected(REFUSE, repeat(0.5))
    first = session.flush()

    assert session.rejected(REFUSE, repeat(0.0)) is None

    assert session.flush() == first


def test_a_refuse_of_a_committed_position_is_old() -> None:
    session = edge()
    session.receive(Commit(0, 0, (4,)))

    assert session.rejected(REFUSE, repeat(0.5)) is None


def test_a_tail_that_runs_out_asks_for_more_until_an_answer_of_its_epoch_comes() -> None:
    session = edge(2, q=Q)
    session.flush()

    redraw = session.rejected(TAILED, repeat(0.9))

    assert redraw == Redraw(1, 0)
    assert session.rejected(TAILED, repeat(0.0)) == redraw  # the same Reject, heard again
    fresh = Reject(1, 0, TAILED.head, 1.0, ((3, 0.9),))
    assert session.rejected(fresh, repeat(0.9)) is None
    assert session.flush() == Draft(2, 0, 0, (3,), (), forced=True)


def test_a_replacement_is_confirmed_like_any_guess() -> None:
    session = edge(1, q=Q)
    session.flush()
    session.rejected(REFUSE, repeat(0.5))
    session.flush()

    progress = session.receive(Commit(1, 0, (3,)))

    assert (progress.tokens, progress.broken, session.chain) == ((3,), False, [])


def test_a_refused_guess_is_a_miss_and_its_replacement_is_no_hit() -> None:
    session = edge(1, q=Q)

    session.rejected(REFUSE, repeat(0.0))
    session.receive(Commit(1, 0, (3,)))

    assert session.committed == [3]
    assert (session.misses, session.unused) == (1, 0)
