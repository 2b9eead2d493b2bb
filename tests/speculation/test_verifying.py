"""The cloud's half: what it takes, what it drops, and what it refuses by name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import pytest

from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.judging import Judgement, Refusal
from speculation.laws import Q_SCALE, Law
from speculation.messages import (
    Commit,
    Draft,
    Finish,
    Limits,
    Open,
    Redraw,
    Refuse,
    Sampling,
    TokenLogprob,
)
from speculation.verifying import ACCEPTANCE_AT_FIRST, MOST_REDRAWS, VerifyingSession

V = 100
P = Law(np.array([1, 2, 3]), np.array([0.5, 0.25, 0.25]))


def session(judge: str = "coupled", **changes: object) -> VerifyingSession:
    fields = {"max_tokens": 50, "stop_tokens": (99,), **changes}
    request = Open("m", "v", (1,), Sampling(), 0, judge=judge, **fields)  # type: ignore[arg-type]
    return VerifyingSession(request, Limits(max_verify=4, max_ahead=8), vocabulary_size=V)


def say(verifier: VerifyingSession, *tokens: int, accepted: int = 0) -> list[Any]:
    """Run a pass that says these tokens."""
    verifier.begin(16)
    return verifier.resolve(Judgement(tokens, accepted))


def refusing(*committed: int) -> VerifyingSession:
    """A `separate` session that awaits a replacement of token 1 after `committed`."""
    verifier = session("separate")
    for token in committed:
        say(verifier, token)
    verifier.receive(Draft(0, len(committed), 0, (1,), (Q_SCALE,)))
    verifier.begin(16)
    verifier.resolve(Judgement((), 0, Refusal(1, P)))
    return verifier


def state(verifier: VerifyingSession) -> dict[str, Any]:
    return copy.deepcopy(vars(verifier))


# --- what no honest edge sends

DISHONEST: dict[str, tuple[VerifyingSession, Draft, str]] = {
    "no tokens": (session(), Draft(0, 0, 0, ()), "Draft.tokens"),
    "not a token": (session(), Draft(0, 0, 0, (1, V)), "Draft.tokens"),
    "behind the prompt": (session(), Draft(0, 0, 1, (1,)), "Draft.behind"),
    "a gap to the text": (session(), Draft(0, 2, 1, (1,)), "Draft.behind"),
    "too far ahead": (session(), Draft(0, 0, 0, (1,) * 9), "Draft.start"),
    "weights in coupled": (session(), Draft(0, 0, 0, (1,), (5,)), "Draft.q"),
    "forced in coupled": (session(), Draft(0, 0, 0, (1,), None, True), "Draft.forced"),
    "no weights in separate": (session("separate"), Draft(0, 0, 0, (1,)), "Draft.q"),
    "a weight too few": (session("separate"), Draft(0, 0, 0, (1, 2), (5,)), "Draft.q"),
    "a weight too many": (session("separate"), Draft(0, 0, 0, (1,), (5, 5)), "Draft.q"),
    "a weight of 0": (session("separate"), Draft(0, 0, 0, (1,), (0,)), "Draft.q"),
    "a weight over 1": (session("separate"), Draft(0, 0, 0, (1,), (Q_SCALE + 1,)), "Draft.q"),
    "forced, nothing refused": (
        session("separate"), Draft(1, 0, 0, (2,), (), True), "Draft.forced",
    ),
    "forced with a weight": (refusing(), Draft(1, 0, 0, (2,), (5,), True), "Draft.q"),
    "forced, the refused itself": (refusing(), Draft(1, 0, 0, (1,), (), True), "Draft.forced"),
    "forced, impossible in p": (refusing(), Draft(1, 0, 0, (4,), (), True), "Draft.forced"),
    "forced behind guesses": (refusing(7), Draft(1, 1, 1, (2,), (), True), "Draft.behind"),
    "forced beyond the refusal": (refusing(), Draft(1, 1, 0, (2,), (), True), "Draft.behind"),
    "forced over committed text": (refusing(7), Draft(1, 0, 0, (8,), (), True), "Draft.forced"),
}  # fmt: skip


@pytest.mark.parametrize(("verifier", "draft", "field"), DISHONEST.values(), ids=DISHONEST)
def test_a_dishonest_draft_is_refused_by_field_and_changes_nothing(
    verifier: VerifyingSession, draft: Draft, field: str
) -> None:
    before = state(verifier)

    with pytest.raises(RemoteProtocolError, match=f"^{field}: "):
        verifier.receive(draft)

    after = state(verifier)
    assert repr(after) == repr(before)


def test_an_epoch_may_not_say_two_tokens_at_one_position() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    with pytest.raises(RemoteProtocolError, match=r"Draft.tokens: position 1 has changed"):
        verifier.receive(Draft(0, 1, 1, (9,)))

    assert verifier.pending == 3


# --- drafts


def test_a_pass_takes_the_drafts_that_follow_the_text() -> None:
    verifier = session("separate")
    verifier.receive(Draft(0, 0, 0, (1, 2, 3), (10, 20, 30)))

    judged = verifier.begin(2)

    assert (judged.start, judged.draft, judged.q) == (0, (1, 2), (10, 20))


@pytest.mark.parametrize(("most", "count"), [(16, 4), (3, 3), (0, 0)])
def test_a_pass_takes_no_more_than_it_may(most: int, count: int) -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,) * 8))

    assert len(verifier.begin(most).draft) == count


def test_a_pass_leaves_room_for_the_targets_own_token() -> None:
    verifier = session(max_tokens=3)
    verifier.receive(Draft(0, 0, 0, (1, 1, 1)))

    assert len(verifier.begin(16).draft) == 2


def test_drafts_after_a_gap_wait_for_what_is_missing() -> None:
    verifier = session()
    verifier.receive(Draft(0, 2, 2, (3, 4)))
    assert verifier.pending == 0

    verifier.receive(Draft(0, 0, 0, (1, 2)))

    assert verifier.begin(16).draft == (1, 2, 3, 4)


def test_drafts_are_not_judged_until_the_chain_before_them_is_known() -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    say(verifier, 7)
    assert verifier.pending == 0  # was 7 the guess before it?

    verifier.receive(Draft(0, 0, 0, (7,)))

    assert verifier.begin(16).draft == (2,)


def test_drafts_that_continue_another_text_are_void() -> None:
    verifier = session()
    verifier.receive(Draft(0, 1, 1, (2,)))
    say(verifier, 7)

    verifier.receive(Draft(0, 0, 0, (8,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert verifier.begin(16).draft == ()


def test_what_the_edge_knows_to_be_right_need_not_arrive() -> None:
    verifier = session()
    say(verifier, 7)
    verifier.receive(Draft(0, 2, 1, (3,)))
    assert verifier.pending == 0

    verifier.receive(Draft(0, 1, 0, (2,)))  # its chain begins at the text: 7 was right

    assert verifier.begin(16).draft == (2, 3)


def test_a_newer_epoch_replaces_what_is_pending_and_an_older_one_is_void() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))

    verifier.receive(Draft(1, 0, 0, (5,)))
    verifier.receive(Draft(0, 2, 2, (3,)))

    assert verifier.begin(16).draft == (5,)


def test_a_repeated_draft_changes_nothing() -> None:
    verifier = session()
    draft = Draft(0, 0, 0, (1, 2))
    verifier.receive(draft)
    say(verifier, 1, 2, 3, accepted=2)
    before = repr(state(verifier))

    assert verifier.receive(draft) == []

    assert repr(state(verifier)) == before


def test_drafts_arriving_during_a_pass_wait_for_the_next() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1,)))
    verifier.begin(16)
    verifier.receive(Draft(0, 1, 1, (2, 3)))

    verifier.resolve(Judgement((1, 2), 1))

    assert verifier.begin(16).draft == (3,)


# --- passes


def test_one_pass_runs_at_a_time() -> None:
    verifier = session()
    with pytest.raises(LocalProtocolError):
        verifier.resolve(Judgement((1,), 0))

    verifier.begin(16)

    with pytest.raises(LocalProtocolError):
        verifier.begin(16)


def test_no_pass_begins_while_a_replacement_is_awaited_or_after_the_end() -> None:
    finished = session(max_tokens=1)
    say(finished, 1)

    for verifier in (finished, refusing()):
        with pytest.raises(LocalProtocolError):
            verifier.begin(16)


@pytest.mark.parametrize(
    ("said", "text", "reason"),
    [
        ((1, 99, 2), (1, 99), "stop"),
        ((1, 2, 3, 4), (1, 2, 3), "length"),
        ((99,), (99,), "stop"),
    ],
)
def test_the_answer_ends_at_a_stop_token_or_at_max_tokens(
    said: tuple[int, ...], text: tuple[int, ...], reason: str
) -> None:
    verifier = session(max_tokens=3)
    logprobs = [TokenLogprob(-float(i)) for i in range(len(said))]
    verifier.begin(16)

    commit, finish = verifier.resolve(Judgement(said, len(said) - 1), logprobs=logprobs)

    assert isinstance(commit, Commit)
    assert (commit.tokens, commit.logprobs) == (text, tuple(logprobs[: len(text)]))
    assert commit.accepted <= len(text)
    assert isinstance(finish, Finish)
    assert finish.reason == reason == verifier.finished
    assert verifier.receive(Draft(5, len(text), 0, (1,))) == []


def test_totals_tell_what_the_drafts_were_worth() -> None:
    verifier = session()
    say(verifier, 7)
    verifier.receive(Draft(0, 1, 0, (1, 2, 3)))
    say(verifier, 1, 2, 9, accepted=2)

    totals = verifier.totals

    assert (totals.passes, totals.judged, totals.accepted, totals.filled) == (2, 3, 2, 1)


# --- acceptance


def learned(*stands: bool) -> float:
    acceptance = ACCEPTANCE_AT_FIRST
    for count, stood in enumerate(stands, 1):
        acceptance += (stood - acceptance) * max(1 / 16, 1 / (count + 1))
    return acceptance


def test_acceptance_is_learned_from_judged_drafts() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    say(verifier, 1, 9, accepted=1)

    assert verifier.acceptance == pytest.approx(learned(True, False))
    assert verifier.broken


def test_acceptance_is_learned_from_drafts_that_the_target_overtook() -> None:
    verifier = session()
    say(verifier, 1)
    say(verifier, 2)

    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    assert verifier.acceptance == pytest.approx(learned(True, True))


def test_acceptance_falls_with_a_refusal_and_ignores_its_replacement() -> None:
    verifier = refusing()
    assert verifier.acceptance == pytest.approx(learned(False))

    verifier.receive(Draft(1, 0, 0, (2,), (), True))

    assert verifier.acceptance == pytest.approx(learned(False))


def test_rows_are_shared_without_looking_at_separate_drafts() -> None:
    coupled, separate = session(), session("separate")
    for verifier, q in ((coupled, None), (separate, (1, 1))):
        verifier.receive(Draft(0, 0, 0, (1, 2), q))

    assert (coupled.affordable, separate.affordable) == (2, 4)


# --- separate: replacements


def test_a_refusal_is_told_and_nothing_of_its_epoch_is_kept() -> None:
    verifier = session("separate")
    verifier.receive(Draft(0, 0, 0, (7, 1, 5), (9, 9, 9)))
    verifier.begin(16)

    commit, refuse = verifier.resolve(Judgement((7,), 1, Refusal(1, P)), u=repeat(0.5))

    assert isinstance(commit, Commit)
    assert isinstance(refuse, Refuse)
    assert (commit.tokens, refuse.position) == ((7,), 1)
    assert verifier.receive(Draft(0, 3, 3, (6,), (9,))) == []
    assert verifier.pending == 0


def test_a_replacement_is_committed_at_once_and_what_follows_it_is_drafted() -> None:
    verifier = refusing(7)

    (commit,) = verifier.receive(Draft(1, 1, 0, (2, 5, 6), (9, 9), True))

    assert isinstance(commit, Commit)
    assert (commit.start, commit.tokens, commit.accepted) == (1, (2,), 0)
    assert verifier.begin(16).draft == (5, 6)


def test_a_replacement_counts_once() -> None:
    verifier = refusing(7)
    forced = Draft(1, 1, 0, (2,), (), True)
    verifier.receive(forced)

    assert verifier.receive(forced) == []

    assert verifier.committed == [7, 2]


def test_a_repeated_replacement_does_not_answer_the_next_refusal() -> None:
    verifier = refusing(7)
    verifier.receive(Draft(1, 1, 0, (2, 1), (Q_SCALE,), True))
    verifier.begin(16)
    verifier.resolve(Judgement((), 0, Refusal(1, P)))

    for epoch in (1, 2):  # late, or as no honest edge would send it
        assert verifier.receive(Draft(epoch, 1, 0, (2,), (), True)) == []

    assert verifier.committed == [7, 2]
    assert verifier.refusal


def test_a_replacement_may_end_the_answer() -> None:
    verifier = session("separate", max_tokens=1)
    verifier.receive(Draft(0, 0, 0, (1,), (Q_SCALE,)))
    verifier.begin(16)
    verifier.refusal = Refusal(1, P)

    _, finish = verifier.receive(Draft(1, 0, 0, (2,), (), True))

    assert isinstance(finish, Finish)
    assert finish.reason == "length"


def redraw(verifier: VerifyingSession, epoch: int, position: int) -> Sequence[Any]:
    return verifier.receive(Redraw(epoch, position), repeat(0.5))


def test_a_redraw_is_answered_once_with_its_own_epoch() -> None:
    verifier = refusing(7)

    (again,) = redraw(verifier, 1, 1)

    assert (again.epoch, again.position) == (1, 1)
    assert redraw(verifier, 1, 1) == []
    assert redraw(verifier, 0, 1) == []


def test_a_redraw_where_nothing_is_awaited_is_dropped() -> None:
    assert redraw(session("separate"), 5, 0) == []
    assert redraw(session(), 5, 0) == []
    assert redraw(refusing(7), 5, 0) == []


def test_one_refusal_is_redrawn_so_many_times_and_no_more() -> None:
    verifier = refusing(7)
    for epoch in range(1, MOST_REDRAWS + 1):
        assert redraw(verifier, epoch, 1)

    with pytest.raises(RemoteProtocolError, match="Redraw"):
        redraw(verifier, MOST_REDRAWS + 1, 1)


def test_drafts_of_an_epoch_that_a_redraw_began_are_void() -> None:
    early, late = refusing(), refusing()
    draft = Draft(1, 1, 1, (5,), (9,))

    early.receive(draft)
    redraw(early, 1, 0)
    redraw(late, 1, 0)
    late.receive(draft)

    for verifier in (early, late):
        verifier.receive(Draft(2, 0, 0, (2,), (), True))
        assert verifier.begin(16).draft == ()


@pytest.mark.parametrize(("fill", "judged"), [("never", 1), ("auto", 0), ("always", 0)])
def test_with_fill_never_a_pass_has_a_draft_however_dear_its_row(
    fill: str, judged: int
) -> None:
    verifier = session(fill=fill)
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))

    assert len(verifier.begin(0).draft) == judged
