"""What each judge accepts, what a Reject holds, and which token the edge draws from it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from random import Random
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speculation import separate
from speculation.coupled import Coupled
from speculation.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    distribution,
    quantise,
)
from speculation.draft_machine import DraftMachine, Outcome
from speculation.draft_token import DraftToken
from speculation.errors import RemoteProtocolError
from speculation.judge import Judgement, Rejection
from speculation.messages import (
    Commit,
    Draft,
    Pushed,
    Recovered,
    Redraw,
    Reject,
    Sampling,
)
from speculation.separate import MAX_REDRAWS, PendingRejection, Separate, as_sent, recover
from speculation.verify_session import VerifyingSession
from tests.speculation.edges import ONLY_TAIL, REJECT, Policy, Q, machine
from tests.speculation.small_models import (
    ALMOST_1,
    Ends,
    distribution_of,
    pvalue,
    random_distribution,
)
from tests.speculation.verifiers import P, begin, rejecting, session


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 3), max_size=6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31),
)
def test_coupled_accepts_drafts_while_they_are_the_targets_own(
    number: int, draft: list[int], seed: int, at: int
) -> None:
    rows = [random_distribution(number + i, 4) for i in range(len(draft) + 1)]
    own = [row.picked(seed, at + i) for i, row in enumerate(rows)]
    right = next((i for i, token in enumerate(draft) if token != own[i]), len(draft))

    judgement = Coupled(seed, at).judge(rows.__getitem__, draft)

    assert judgement.tokens == tuple(own[: right + 1])
    assert (judgement.accepted, judgement.rejection) == (right, None)


def test_no_row_is_computed_after_the_first_rejected_draft_token() -> None:
    seen: list[int] = []

    def row(i: int) -> Distribution:
        seen.append(i)
        return distribution_of(1.0)

    Coupled(1, 1).judge(row, (0, 5, 0, 0))
    Separate((Q_SCALE,) * 4, (0.5,) * 5).judge(row, (0, 5, 0, 0))

    assert seen == [0, 1, 0, 1]


@given(
    st.floats(0, 1, exclude_max=True),
    st.integers(1, Q_SCALE),
    st.just(0.0) | st.floats(0.01, 0.99),
)
@example(0.0, 1, 0.0)  # what the target cannot generate is never accepted
def test_a_draft_token_is_accepted_when_u_is_under_p_over_q(
    u: float, weight: int, p: float
) -> None:
    judged = Separate((weight,), (u, 0.0)).judge(lambda i: distribution_of(p, 1 - p), (0,))

    rounded = float(np.float32(p))
    assert judged.accepted == (u * weight < rounded * Q_SCALE)
    assert (judged.rejection is None) == bool(judged.accepted)


def test_a_token_whose_p_rounds_to_nothing_is_impossible() -> None:
    p = as_sent(Distribution(np.array([4, 5, 6]), np.array([0.5, 1e-60, 0.5])))

    assert (p.tokens.tolist(), p.p.tolist()) == ([4, 6], [0.5, 0.5])


def reject_of(p: Distribution, *uniforms: float) -> Reject:
    """What is sent of p with a sample of the tail for each of the uniforms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separate, "TAIL_SAMPLES", len(uniforms))
        return PendingRejection(Rejection(0, p), Commit(3, 9, ())).message(iter(uniforms))


@given(st.integers(0, 2**32), st.integers(1, 700), st.floats(0.1, 4.0))
@settings(max_examples=60)
def test_a_reject_holds_the_distribution_that_rejected(
    number: int, size: int, spread: float
) -> None:
    p = as_sent(random_distribution(number, size, spread))

    reject = reject_of(p, 0.1, 0.9, ALMOST_1)

    assert (reject.epoch, reject.position, reject.draw) == (3, 9, 0)
    assert sum(p for _, p in reject.head) + reject.tail_mass == pytest.approx(1.0, abs=1e-6)
    assert len(reject.tail) == (3 if reject.tail_mass else 0)
    assert {t for t, _ in reject.head}.isdisjoint(t for t, _ in reject.tail)
    for token, p_sent in (*reject.head, *reject.tail):
        assert p_sent == p.of(token) == np.float32(p_sent)


def test_samples_of_the_tail_have_the_tails_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(separate, "HEAD_TOKENS", 2)
    monkeypatch.setattr(separate, "HEAD_COVERS", 0.5)
    p = as_sent(distribution_of(0.4, 0.3, 0.15, 0.1, 0.05))
    uniforms = (np.arange(3000) + 0.5) / 3000

    reject = reject_of(p, *uniforms.tolist())

    counts = np.bincount([token for token, _ in reject.tail], minlength=5)
    np.testing.assert_allclose(counts / 3000, [0, 0, 1 / 2, 1 / 3, 1 / 6], atol=1e-3)
    assert reject.tail_mass == pytest.approx(0.3)
    assert separate.TAIL_SAMPLES == 8


def test_the_head_is_all_of_a_small_distribution_and_most_of_a_large_one() -> None:
    small = distribution(np.linspace(0, 3, 512).astype(np.float32), Sampling())
    peaked = distribution(np.linspace(0, 400, 5000).astype(np.float32), Sampling())
    flat = distribution(np.linspace(0, 1, 5000).astype(np.float32), Sampling())

    tiny = distribution(np.linspace(0, 40, 5).astype(np.float32), Sampling())
    assert len(separate.head_of(small)) == 512
    assert separate.head_of(tiny).tolist() == [4, 3, 2, 1, 0]
    assert peaked.p[separate.head_of(peaked)].sum() >= separate.HEAD_COVERS
    assert len(separate.head_of(peaked)) < separate.HEAD_TOKENS
    assert flat.tokens[separate.head_of(flat)].tolist() == list(range(4999, 4487, -1))


# `separate` draws from p: 60,000 tokens through both ends, and wrong controls.
#
# The distribution of a token depends on the one before it, draft tokens come from a q that is
# wrong on purpose, a pass takes any number of them, and the head is so small that the tail
# often decides.


@pytest.fixture
def head_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separate, "HEAD_TOKENS", 3)
    monkeypatch.setattr(separate, "TAIL_SAMPLES", 1)


@pytest.mark.usefixtures("head_of_three")
def test_what_two_ends_generate_has_the_targets_distribution() -> None:
    found = pvalue([Ends(Random(i)).run() for i in range(60)])

    assert found > 1e-3, found


def test_it_has_not_when_p_is_cut_to_its_top_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PendingRejection.message

    def top_ten(self: PendingRejection, u: Iterator[float]) -> Reject:
        reject = whole(self, u)
        return replace(reject, head=reject.head[:10], tail_mass=0.0)

    monkeypatch.setattr(PendingRejection, "message", top_ten)

    found = pvalue([Ends(Random(i)).run() for i in range(30)])

    assert found < 1e-9, found


@pytest.mark.usefixtures("head_of_three")
def test_it_keeps_the_distribution_when_verifiers_are_lost() -> None:
    ends = [Ends(Random(i), loses=0.3) for i in range(60)]

    found = pvalue([each.run() for each in ends])

    assert sum(each.lost for each in ends) > 10_000
    assert sum(each.pending for each in ends) > 1_000
    assert found > 1e-3, found


@pytest.mark.usefixtures("head_of_three")
def test_it_would_not_if_a_rejected_draft_token_were_judged_anew() -> None:
    found = pvalue([Ends(Random(i), loses=0.3, rejudges=True).run() for i in range(60)])

    assert found < 1e-9, found


# The recovered token: with it the output has the distribution p, by enumeration.

NONE: Final = -1
Shares = Counter[int]


class EndpointRequest(Exception):
    """`recover` wants a uniform beyond those it was given."""


def scripted(values: Sequence[float]) -> Iterator[float]:
    yield from values
    raise EndpointRequest


def shares(answer: Callable[[float], int], low: float = 0.0, high: float = ALMOST_1) -> Shares:
    """Return how much of [low, high) each answer takes. Each must take one interval."""
    if answer(low) == answer(high):
        return Counter({answer(low): high - low})
    if high - low < 1e-9:
        return Counter()
    middle = (low + high) / 2
    return shares(answer, low, middle) + shares(answer, middle, high)


def proposal(reject: Reject, q: QuantisedDistribution) -> Shares:
    """What the first proposal gives, by share of its uniforms; NONE: it is not taken."""

    def answer(*uniforms: float) -> int:
        try:
            token = recover(reject, q, scripted(uniforms))
        except EndpointRequest:
            return NONE
        return NONE if token is None else token

    heads = shares(answer)
    in_tail = heads.pop(NONE, 0.0)
    if in_tail:
        for token_out, share in shares(lambda u: answer(ALMOST_1, u)).items():
            heads[token_out] += in_tail * share
    return heads


def recovered_distribution(
    p: Distribution, rejected: int, q: QuantisedDistribution
) -> dict[int, float]:
    """Enumerate `recover` over its first proposal, given that it is taken: one that is not
    makes all begin anew, so this is the distribution of whatever is drawn in the end."""
    reject = PendingRejection(Rejection(rejected, p), Commit(0, 0, ())).message(iter(()))
    head = {token for token, _ in reject.head}
    tail = [(t, p.of(t)) for t in p.tokens.tolist() if t not in head]
    mass = sum(sent for _, sent in tail)
    drawn: Shares = Counter()
    for sample in tail or [None]:
        sampled = reject if sample is None else dataclasses.replace(reject, tail=(sample,))
        for token_out, share in proposal(sampled, q).items():
            drawn[token_out] += share * (1.0 if sample is None else sample[1] / mass)
    del drawn[NONE]
    return {token: share / sum(drawn.values()) for token, share in drawn.items()}


def output_distribution(
    p: Distribution, q: QuantisedDistribution, residual: Callable[[int], dict[int, float]]
) -> np.ndarray:
    """Compose: each draft token, accepted or recovered."""
    size = int(max(p.tokens.max(), q.tokens.max())) + 1
    out = np.zeros(size)
    for token, weight in zip(q.tokens.tolist(), q.weights.tolist(), strict=True):
        drawn = weight / Q_SCALE
        accepted = min(1.0, p.of(token) / drawn)
        out[token] += drawn * accepted
        if accepted < 1.0:
            for token_out, share in residual(token).items():
                out[token_out] += drawn * (1.0 - accepted) * share
    return out


PAIRS = {
    "drafts near p": (random_distribution(1, 5), random_distribution(2, 5, 0.5)),
    "drafts far from p": (
        distribution_of(0.05, 0.05, 0.2, 0.3, 0.4),
        distribution_of(0.6, 0.3, 0.1),
    ),
    "drafts that p forbids": (
        distribution_of(0, 0, 0.5, 0.3, 0.2),
        distribution_of(0.5, 0.4, 0.1),
    ),
    "drafts in the tail": (
        distribution_of(0.4, 0.3, 0.1, 0.1, 0.1),
        distribution_of(0, 0, 0.5, 0.4, 0.1),
    ),
    "one draft": (distribution_of(0.2, 0.2, 0.6), distribution_of(0.0, 1.0)),
}


@pytest.mark.parametrize(("target", "draft"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("heads", [2, 512])
def test_the_output_distribution_is_p_by_enumeration(
    target: Distribution, draft: Distribution, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separate, "HEAD_TOKENS", heads)
    p, q = as_sent(target), quantise(draft)

    out = output_distribution(p, q, lambda token: recovered_distribution(p, token, q))

    expected = [p.of(token) for token in range(len(out))]
    np.testing.assert_allclose(out, expected, atol=1e-7)


def test_the_output_distribution_is_not_p_when_the_tail_is_dropped() -> None:
    p, q = (
        as_sent(distribution_of(0.3, 0.25, 0.25, 0.2)),
        quantise(distribution_of(0.7, 0.1, 0.1, 0.1)),
    )

    def truncated(token: int) -> dict[int, float]:
        head = Distribution(p.tokens[:2], p.p[:2] / p.p[:2].sum())
        return recovered_distribution(as_sent(head), token, q)

    out = output_distribution(p, q, truncated)

    assert abs(out - p.p).max() > 0.05


HEAD = ((0, 0.5), (1, 0.25))
NEAR = quantise(distribution_of(0.75, 0.0, 0.25))


def test_a_tail_token_likelier_in_q_is_dropped_and_all_is_drawn_again() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((2, 0.2), (3, 0.05)))

    assert recover(reject, NEAR, scripted([0.9, ALMOST_1, 0.9, 0.0])) == 3
    assert recover(reject, NEAR, scripted([0.9, ALMOST_1, 0.1])) == 1


def test_a_tail_that_runs_out_is_owed_a_sample() -> None:
    reject = Reject(0, 0, 0, HEAD, 0.25, ((2, 0.2),))

    assert recover(reject, NEAR, scripted([0.9, 0.5, 0.9])) is None

    fresh = dataclasses.replace(reject, tail=((3, 0.05),))
    assert recover(fresh, NEAR, scripted([0.0]), in_tail=True) == 3


def test_a_reject_where_p_exceeds_q_nowhere_is_not_honest() -> None:
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        recover(Reject(0, 0, 0, ((0, 0.5),), 0.0), NEAR, repeat(0.5))
    with pytest.raises(RemoteProtocolError, match="exceeds q nowhere"):
        recover(Reject(0, 0, 0, (), 0.0), NEAR, repeat(0.5))


# In `separate` the edge draws recovered tokens; nothing is committed until one has come.


def sent(*chain: int, judge: str = "separate") -> DraftMachine:
    """A machine that has sent a chain."""
    edge = machine(Policy(drafts=0), judge=judge)
    for token in chain:
        edge.session.extend(DraftToken(token, 0.9, Q if judge == "separate" else None))
    edge.next(0.0, busy=False)
    return edge


def test_each_draft_token_is_sent_at_once_whatever_the_policy_says() -> None:
    edge = machine(Policy(unsent=5), judge="separate")
    asked = edge.next(0.0, busy=False).step
    assert asked
    edge.drafted(asked, [DraftToken(2, 0.9, Q)], 0.1)

    outcome = edge.next(0.1, busy=False)

    assert outcome.step
    assert outcome.send == (Draft(0, 0, 0, (2,), (Q_SCALE // 2,)),)


def test_the_recovered_token_is_the_text_with_the_draft_tokens_before_it() -> None:
    edge = sent(2, 1)

    outcome = edge.received(Reject(0, 1, 0, ((1, 0.25), (3, 0.75)), 0.0))

    assert outcome == Outcome(send=(Recovered(1, 1, 3),), commit=Commit(0, 0, (2, 3), 1))
    assert (edge.session.epoch, edge.session.chain, edge.session.misses) == (1, [], 0)


def test_a_rejected_first_token_is_a_miss_drawn_once_and_known_when_it_is_committed() -> None:
    edge = sent(1)
    edge.received(REJECT)

    assert edge.received(REJECT) == Outcome()  # it is not drawn from again
    assert edge.received(Commit(0, 0, (3,), pass_s=0.1)) == Outcome()

    assert edge.session.committed == [3]
    assert edge.session.misses == 1
    assert edge.lost() is None
    assert edge.opening().committed == (3,)


def test_a_tail_that_runs_out_asks_for_more_until_the_answer_to_that_comes() -> None:
    edge = sent(2)

    assert edge.received(ONLY_TAIL) == Outcome(send=(Redraw(0, 0, 1),))

    assert edge.received(ONLY_TAIL) == Outcome()  # the same samples again
    assert edge.received(Reject(0, 0, 1, ONLY_TAIL.head, 1.0)).send == (Redraw(0, 0, 2),)
    fresh = Reject(0, 0, 2, ONLY_TAIL.head, 1.0, ((3, 0.9),))
    assert edge.received(fresh).send == (Recovered(1, 0, 3),)


@pytest.mark.parametrize(
    "lie",
    [
        Reject(0, 0, 0, ((1, 0.5), (2, 0.5)), 0.0),  # it forbids all
        Reject(0, 0, 0, (), 0.0),
        Reject(0, 1, 0, ((3, 1.0),), 0.0),
    ],
)
def test_a_reject_that_cannot_be_answered_changes_nothing(lie: Reject) -> None:
    edge = sent(1)

    with pytest.raises(RemoteProtocolError, match=r"^Reject"):
        edge.received(lie)

    assert (edge.session.committed, edge.session.epoch) == ([], 0)


def test_a_reject_is_a_lie_in_coupled() -> None:
    edge = sent(1, judge="coupled")

    with pytest.raises(RemoteProtocolError, match="no token to the edge"):
        edge.received(REJECT)


def rejected(**changes: object) -> tuple[VerifyingSession, list[Any]]:
    """A session that accepted one draft token of two, and what it sent."""
    verifier = session("separate", **changes)
    verifier.receive(Draft(0, 0, 0, (7, 1, 5), (9, 9, 9)))
    begin(verifier)
    return verifier, verifier.resolve(Judgement((7,), 1, Rejection(1, P)), pass_s=0.2)


def test_a_rejection_is_sent_and_nothing_of_its_epoch_is_kept() -> None:
    verifier, (reject,) = rejected()

    assert isinstance(reject, Reject)
    assert (reject.epoch, reject.position, reject.draw) == (0, 1, 0)
    assert verifier.receive(Draft(0, 3, 3, (6,), (9,))) == []
    assert (verifier.committed, verifier.may_begin) == ([], False)
    verifier.receive(Recovered(1, 1, 2))
    assert verifier.pending == 0


def test_the_recovered_token_is_committed_with_what_was_accepted_before_it() -> None:
    verifier, _ = rejected()

    down = verifier.receive(Recovered(1, 1, 2))

    assert down == [Commit(0, 0, (7, 2), accepted=1, pass_s=0.2)]
    assert (verifier.totals.accepted, verifier.totals.passes) == (1, 1)


def test_draft_tokens_may_come_before_the_recovered_token_that_they_follow() -> None:
    early, late = rejected()[0], rejected()[0]
    messages: list[Pushed] = [Draft(1, 2, 0, (5, 6), (9, 9)), Recovered(1, 1, 2)]
    for verifier, order in ((early, messages), (late, messages[::-1])):
        for message in order:
            verifier.receive(message)

        assert begin(verifier).draft == (5, 6)


def test_accepted_tokens_that_end_the_answer_leave_nothing_to_recover() -> None:
    _, (commit, finish) = rejected(stop_tokens=(7,))

    assert commit.tokens == (7,)
    assert finish.reason == "stop"


def test_a_recovered_token_counts_once_and_for_no_later_rejection() -> None:
    verifier = rejecting(7)
    verifier.receive(Recovered(1, 1, 2))
    verifier.receive(Draft(1, 2, 0, (1,), (Q_SCALE,)))
    begin(verifier)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))

    assert verifier.receive(Recovered(1, 1, 2)) == []

    assert (verifier.committed, verifier.may_begin) == ([7, 2], False)


def redraw(verifier: VerifyingSession, position: int, draw: int) -> Sequence[Any]:
    return verifier.receive(Redraw(0, position, draw))


def test_a_redraw_is_answered_once_where_a_token_is_owed() -> None:
    verifier = rejecting(7)

    (again,) = redraw(verifier, 1, 1)

    assert (again.position, again.draw) == (1, 1)
    assert redraw(verifier, 1, 1) == []
    assert redraw(verifier, 0, 2) == []
    assert redraw(session("separate"), 0, 1) == []


def test_one_rejection_is_redrawn_so_many_times_and_no_more() -> None:
    verifier = rejecting(7)
    for draw in range(1, MAX_REDRAWS + 1):
        assert redraw(verifier, 1, draw)

    with pytest.raises(RemoteProtocolError, match="Redraw"):
        redraw(verifier, 1, MAX_REDRAWS + 1)
