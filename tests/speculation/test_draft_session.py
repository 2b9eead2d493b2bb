"""The edge's record: its chain grows, travels, is confirmed or broken; a lie is named."""

from __future__ import annotations

import pytest

from picospec.speculation.distributions import DraftToken
from picospec.speculation.messages import (
    Commit,
    Draft,
    LocalProtocolError,
    Reject,
    RemoteProtocolError,
    TokenLogprob,
)
from tests.speculation.edges import STOP, Q, chain_of, drafting


def test_the_chain_is_the_context_and_its_survival_a_product() -> None:
    session = drafting(4, 5)
    session.receive(Commit(0, 0, (4,)))

    assert session.context == [4, 5]
    assert session.survival == 0.5
    assert drafting().survival == 1.0


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


def test_commits_that_agree_and_take_no_draft_token_are_counted() -> None:
    session = drafting(4, 5, 6, 7)

    session.receive(Commit(0, 0, (4,)))
    session.receive(Commit(0, 1, (5,)))
    assert session.unused_commits == 2
    session.receive(Commit(0, 2, (6, 7), accepted=1))
    assert session.unused_commits == 0
    session.receive(Commit(0, 4, (8,)))  # nothing was drafted here

    assert session.unused_commits == 0


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
    "more with its own": (Commit(0, 1, (1,), accepted=1, own=1), "Commit.accepted"),
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
