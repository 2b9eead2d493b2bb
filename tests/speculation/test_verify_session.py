"""The verifier's record: what it takes, what it drops, and what it commits."""

from __future__ import annotations

import pytest

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.judges.separate.rule import Separate
from picospec.speculation.protocol.errors import LocalProtocolError
from picospec.speculation.protocol.messages import (
    Commit,
    Draft,
    Finish,
    Recovered,
    TokenLogprob,
)
from picospec.speculation.verifying.chain import ACCEPTANCE_PRIOR
from tests.speculation.verify_sessions import begin, generate, rejecting, session, state

# --- drafts


def test_a_pass_takes_the_drafts_that_follow_the_text() -> None:
    verifier = session("separate")
    verifier.receive(Draft(0, 0, 0, (1, 2, 3), (10, 20, 30)))

    judged = begin(verifier, 2)

    assert (judged.start, judged.draft) == (0, (1, 2))
    assert judged.rule == Separate((10, 20), (0.5,) * 3)


@pytest.mark.parametrize(("most", "count"), [(16, 4), (3, 3), (0, 0)])
def test_a_pass_takes_no_more_than_it_may(most: int, count: int) -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,) * 8))

    assert len(begin(verifier, most).draft) == count


def test_a_pass_leaves_room_for_the_targets_own_token() -> None:
    verifier = session(max_tokens=3)
    verifier.receive(Draft(0, 0, 0, (1, 1, 1)))

    assert len(begin(verifier).draft) == 2


def test_drafts_after_a_gap_wait_for_what_is_missing() -> None:
    verifier = session()
    verifier.receive(Draft(0, 2, 2, (3, 4)))
    assert verifier.pending == 0

    verifier.receive(Draft(0, 0, 0, (1, 2)))

    assert begin(verifier).draft == (1, 2, 3, 4)


def test_drafts_are_not_judged_until_the_chain_before_them_is_known() -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    generate(verifier, 7)
    assert verifier.pending == 0  # was 7 the draft token before it?

    verifier.receive(Draft(0, 0, 0, (7,)))

    assert begin(verifier).draft == (2,)


def test_drafts_that_continue_another_text_are_void() -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    generate(verifier, 7)

    verifier.receive(Draft(0, 0, 0, (8,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert begin(verifier).draft == ()


def test_what_the_edge_knows_to_be_right_need_not_arrive() -> None:
    verifier = session()
    generate(verifier, 7)
    verifier.receive(Draft(0, 2, 1, (3,)))
    assert verifier.pending == 0

    verifier.receive(Draft(0, 1, 0, (2,)))  # its chain begins at the text: 7 was right

    assert begin(verifier).draft == (2, 3)


def test_a_newer_epoch_replaces_what_is_pending_and_an_older_one_is_void() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))

    verifier.receive(Draft(1, 0, 0, (5,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert begin(verifier).draft == (5,)


def test_a_repeated_draft_changes_nothing() -> None:
    verifier = session()
    draft = Draft(0, 0, 0, (1, 2))
    verifier.receive(draft)
    generate(verifier, 1, 2, 3, accepted=2)
    before = repr(state(verifier))

    assert verifier.receive(draft) == []

    assert repr(state(verifier)) == before


def test_drafts_arriving_during_a_pass_wait_for_the_next() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,)))
    begin(verifier)
    verifier.receive(Draft(0, 1, 1, (2, 3)))

    verifier.resolve(Judgement((1, 2), 1))

    assert begin(verifier).draft == (3,)


# --- passes


def test_one_pass_runs_at_a_time() -> None:
    verifier = session()
    with pytest.raises(LocalProtocolError):
        verifier.resolve(Judgement((1,), 0))

    begin(verifier)

    with pytest.raises(LocalProtocolError):
        begin(verifier)


def test_no_pass_begins_while_a_recovered_token_is_awaited_or_after_the_end() -> None:
    finished = session(max_tokens=1)
    generate(finished, 1)

    for verifier in (finished, rejecting()):
        with pytest.raises(LocalProtocolError):
            begin(verifier)


@pytest.mark.parametrize(
    ("tokens", "text", "reason"),
    [
        ((1, 99, 2), (1, 99), "stop"),
        ((1, 2, 3, 4), (1, 2, 3), "length"),
        ((99,), (99,), "stop"),
    ],
)
def test_the_answer_ends_at_a_stop_token_or_at_max_tokens(
    tokens: tuple[int, ...], text: tuple[int, ...], reason: str
) -> None:
    verifier = session(max_tokens=3)
    logprobs = [TokenLogprob(-float(i)) for i in range(len(tokens))]
    begin(verifier)

    commit, finish = verifier.resolve(Judgement(tokens, len(tokens) - 1), logprobs=logprobs)

    assert isinstance(commit, Commit)
    assert (commit.tokens, commit.logprobs) == (text, tuple(logprobs[: len(text)]))
    assert commit.accepted <= len(text)
    assert isinstance(finish, Finish)
    assert finish.reason == reason == verifier.finished
    assert verifier.receive(Draft(5, len(text), 0, (1,))) == []


def test_totals_show_what_the_drafts_were_worth() -> None:
    verifier = session()
    generate(verifier, 7)
    verifier.receive(Draft(0, 1, 0, (1, 2, 3)))
    generate(verifier, 1, 2, 9, accepted=2)

    totals = verifier.totals

    assert (totals.passes, totals.judged, totals.accepted, totals.filled) == (2, 3, 2, 1)


@pytest.mark.parametrize(("fill", "judged"), [("never", 1), ("auto", 0), ("always", 0)])
def test_with_fill_never_a_pass_has_a_draft_however_dear_its_row(
    fill: str, judged: int
) -> None:
    verifier = session(fill=fill)
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    assert len(begin(verifier, 0).draft) == judged


# --- acceptance


def learned(*right: bool) -> float:
    acceptance = ACCEPTANCE_PRIOR
    for count, accepted in enumerate(right, 1):
        acceptance += (accepted - acceptance) * max(1 / 16, 1 / (count + 1))
    return acceptance


def test_acceptance_is_learned_from_judged_drafts() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    generate(verifier, 1, 9, accepted=1)

    assert verifier.chain.acceptance == pytest.approx(learned(True, False))
    assert verifier.chain.broken


def test_acceptance_is_learned_from_drafts_that_the_target_overtook() -> None:
    verifier = session()
    generate(verifier, 1)
    generate(verifier, 2)

    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    assert verifier.chain.acceptance == pytest.approx(learned(True, True))


def test_acceptance_falls_with_a_rejection_and_ignores_its_recovered_token() -> None:
    verifier = rejecting()
    assert verifier.chain.acceptance == pytest.approx(learned(False))

    verifier.receive(Recovered(1, 0, 2))

    assert verifier.chain.acceptance == pytest.approx(learned(False))


def test_rows_are_allocated_without_looking_at_separate_drafts() -> None:
    coupled, separate = session(), session("separate")
    for verifier, q in ((coupled, None), (separate, (1, 1))):
        verifier.receive(Draft(0, 0, 0, (1, 2), q))

    assert (len(coupled.gains), len(separate.gains)) == (2, 4)


def test_drafts_beyond_what_a_pass_takes_are_not_counted_for_it() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3, 4, 5, 6)))

    assert (verifier.pending, len(verifier.gains)) == (6, 4)
