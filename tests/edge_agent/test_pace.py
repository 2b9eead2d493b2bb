"""The window follows what is measured."""

from __future__ import annotations

from edge_agent.pace import Pace
from speculation.messages import Limits
from speculation.pacing import DraftPacing


def pace(rtt_s: float = 0.0) -> Pace:
    return Pace(DraftPacing(), Limits(max_verify=8, max_ahead=64), lambda: rtt_s)


def test_before_the_first_pass_all_that_the_verifier_keeps_may_be_drafted() -> None:
    assert pace().window == 64


def test_the_window_covers_a_pass_and_a_round_trip() -> None:
    measured = pace(rtt_s=0.1)

    measured.passed(0.19)
    measured.drafted(0, 10, 5.0)  # the prompt: not a draft's time
    measured.drafted(0, 11, 0.02)

    assert measured.window == 8 + 15


def test_a_step_after_a_broken_chain_is_not_a_drafts_time() -> None:
    measured = pace()
    measured.passed(0.2)
    measured.drafted(0, 10, 0.02)
    measured.drafted(0, 11, 0.02)

    measured.drafted(1, 9, 9.0)

    assert measured.window == 8 + 10


def test_a_replacement_says_nothing_of_a_pass() -> None:
    measured = pace()

    measured.passed(0.0)

    assert measured.window == 64
