"""The verifier's record: what it takes, what it drops, and what it commits."""

from __future__ import annotations

import pytest

from speculation.chain import ACCEPTANCE_PRIOR
from speculation.errors import LocalProtocolError
from speculation.judge import Judgement
from speculation.messages import Commit, Draft, Finish, Recovered, TokenLogprob
from tests.speculation.verifiers import begin, generate, rejecting, session, state


@pytest.mark.parametrize(
    ("changes", "most", "count"),
    [
        ({}, 16, 4),
        ({}, 3, 3),
        ({}, 0, 0),
        ({"fill": "always"}, 0, 0),
        ({"fill": "never"}, 0, 1),  # it has one, however dear the row is
        ({"max_tokens": 3}, 16, 2),  # the target's own token needs a position
    ],
)
def test_a_pass_takes_no_more_than_it_may(
    changes: dict[str, object], most: int, count: int
) -> None:
    verifier = session(**changes)
    verifier.receive(Draft(0, 0, 0, (1,) * 8))

    assert len(begin(verifier, most).draft) == count


@pytest.mark.parametrize(("before", "draft"), [(7, (2, 3)), (8, ())], ids=["it", "another"])
def test_drafts_are_judged_once_the_chain_before_them_is_known_to_be_the_text(
    before: int, draft: tuple[int, ...]
) -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    generate(verifier, 7)
    assert verifier.pending == 0  # was 7 the draft token before it?

    verifier.receive(Draft(0, 0, 0, (before,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert begin(verifier).draft == draft


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
    before = state(verifier)

    assert verifier.receive(draft) == []

    assert state(verifier) == before


def test_drafts_arriving_during_a_pass_wait_for_the_next() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,)))
    begin(verifier)
    verifier.receive(Draft(0, 1, 1, (2, 3)))

    verifier.resolve(Judgement((1, 2), 1))

    assert begin(verifier).draft == (3,)


def test_one_pass_runs_at_a_time_and_judges_no_more_than_is_pending() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (0,)))
    with pytest.raises(LocalProtocolError, match="no pass has begun"):
        verifier.resolve(Judgement((1,), 0))
    with pytest.raises(LocalProtocolError, match="no pass can have 2 draft tokens"):
        verifier.begin(2)

    verifier.begin(1)

    with pytest.raises(LocalProtocolError, match="no pass may begin now"):
        verifier.begin(0)


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


def test_acceptance_falls_with_a_rejection_and_ignores_its_recovered_token() -> None:
    verifier = rejecting()
    assert verifier.chain.acceptance == pytest.approx(ACCEPTANCE_PRIOR / 2)

    verifier.receive(Recovered(1, 0, 2))

    assert verifier.chain.acceptance == pytest.approx(ACCEPTANCE_PRIOR / 2)


@pytest.mark.parametrize(
    ("judge", "pending", "rows"),
    [("coupled", 2, 2), ("coupled", 6, 4), ("separate", 2, 4)],
    ids=["those-there-are", "those-a-pass-takes", "whichever-are-there"],
)
def test_rows_are_counted_for_what_a_pass_may_judge(
    judge: str, pending: int, rows: int
) -> None:
    verifier = session(judge)
    q = (1,) * pending if judge == "separate" else None
    verifier.receive(Draft(0, 0, 0, (1,) * pending, q))

    assert (verifier.pending, len(verifier.gains)) == (pending, rows)
