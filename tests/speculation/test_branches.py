"""Which branch is drafted, and what becomes of them when the chain breaks."""

from __future__ import annotations

from speculation.branches import Branches, Growing
from speculation.guess import Guess

CHAIN = [Guess(1, 0.5, others=((2, 0.25), (3, 0.125))), Guess(4, 0.9, others=((5, 0.5),))]


def best(branches: Branches, *without: tuple[int, int], least: float = 0.1) -> Growing | None:
    return branches.best(
        CHAIN,
        10,
        least=least,
        may_grow=lambda branch: (branch.position, branch.token) not in without,
    )


def test_the_likeliest_comes_first_and_counts_what_must_stand_before() -> None:
    branches = Branches()

    assert best(branches) == Growing(11, 5)  # as likely as the one before, and later
    assert best(branches, (11, 5)) == Growing(10, 2)
    assert best(branches, (11, 5), (10, 2)) == Growing(10, 3)
    assert best(branches, (11, 5), (10, 2), (10, 3)) is None
    assert best(branches, (11, 5), (10, 2), least=0.13) is None


def test_a_branch_grows_and_is_taken_once() -> None:
    branches = Branches()
    for _ in range(2):
        branch = best(branches)
        assert branch is not None
        branches.grow(branch, Guess(8, 1.0))

    assert branch.tokens == [5, 8, 8]
    assert branch.end == 14
    assert branches.take(11, 5) == branch.guesses
    assert branches.take(11, 5) == []


def test_a_text_that_takes_no_branch_forgets_them_all() -> None:
    branches = Branches()
    branch = best(branches)
    assert branch is not None
    branches.grow(branch, Guess(8, 1.0))

    assert branches.take(11, 6) == []
    assert branches.take(11, 5) == []


def test_a_branch_is_as_likely_as_all_before_it_and_its_token() -> None:
    branches = Branches()

    def chance(position: int, token: int) -> float:
        return branches.chance(CHAIN, 10, Growing(position, token))

    assert chance(10, 2) == 0.25
    assert chance(11, 5) == 0.5 * 0.5
    assert chance(11, 6) == 0.0  # nothing says so
    assert chance(9, 2) == 0.0  # the text has passed it
