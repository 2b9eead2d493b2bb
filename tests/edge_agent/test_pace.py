"""The window follows what is measured."""

from __future__ import annotations

from edge_agent.pace import Pace

from speculation.drafting.policy import PATIENCE, DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.protocol.messages import Commit, Limits
from speculation.sampling.draft_token import DraftToken


def pace(rtt_s: float = 0.0) -> Pace:
    return Pace(DraftSettings(), Limits(max_verify=8, max_ahead=64), lambda: rtt_s)


def test_before_the_first_pass_all_that_the_verifier_keeps_may_be_drafted() -> None:
    assert pace().window == 64


def test_the_window_covers_a_pass_and_a_round_trip() -> None:
    measured = pace(rtt_s=0.1)

    measured.passed(0.19)
    measured.drafted(0.02)

    assert measured.window == 8 + 15


def test_a_replacement_says_nothing_of_a_pass() -> None:
    measured = pace()

    measured.passed(0.0)

    assert measured.window == 64


def test_after_many_misses_the_target_is_left_alone_for_a_while() -> None:
    session = DraftingSession(max_tokens=1000, stop_tokens=())
    measured, said = pace(), 0

    def commit() -> None:
        nonlocal said
        session.receive(Commit(0, said, (1,)))
        said += 1

    drafted = []
    for _ in range(PATIENCE + 4):
        drafted.append(measured.may_draft(session))
        if drafted[-1]:
            session.extend(DraftToken(2, 1.0))
        commit()

    assert drafted == [True] * PATIENCE + [False, True, False, False]
