"""Branches: what would follow if the target said another token than the chain does.

The edge drafts them when its chain is long enough. When the text leaves the chain at a branch's
position, with its token, then the branch is the next chain and need not be drafted. If it was
sent ahead, it is so at both ends, a round trip sooner: the verifier holds it, and it takes no
row until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from speculation.guess import Guess
from speculation.messages import TokenId


@dataclass(slots=True)
class Growing:
    """A branch as the edge drafts it."""

    position: int
    """Where it leaves the chain."""

    token: TokenId
    """What the target would say there."""

    guesses: list[Guess] = field(default_factory=list)
    """What would follow. Once sent they do not change: the verifier may go on with them."""

    sent: bool = False

    @property
    def tokens(self) -> list[TokenId]:
        return [self.token, *(guess.token for guess in self.guesses)]

    @property
    def end(self) -> int:
        return self.position + 1 + len(self.guesses)


class Branches:
    """The branches of one chain."""

    def __init__(self) -> None:
        self._growing: dict[tuple[int, TokenId], Growing] = {}

    def best(
        self,
        chain: Sequence[Guess],
        start: int,
        *,
        least: float,
        may_grow: Callable[[Growing], bool],
    ) -> Growing | None:
        """Return the branch most likely to be taken, of those that may grow.

        start: the position of the chain's first guess. least: the chance below which no branch
        is looked at.
        """
        likely = sorted(
            (place for place in _places(chain, start) if place[0] >= least), reverse=True
        )
        found = (self._at(position, token) for _, position, token in likely)
        return next(filter(may_grow, found), None)

    def chance(self, chain: Sequence[Guess], start: int, branch: Growing) -> float:
        """Return how likely the text is to take a branch; 0 if it no longer can."""
        chances = {(at, token): chance for chance, at, token in _places(chain, start)}
        return chances.get((branch.position, branch.token), 0.0)

    def grow(self, branch: Growing, guess: Guess) -> None:
        """Add a guess to a branch that `best` returned."""
        branch.guesses.append(guess)
        self._growing[branch.position, branch.token] = branch

    def take(self, position: int, token: TokenId) -> list[Guess]:
        """Return what follows `token`, where the text left the chain; forget all branches."""
        taken = self._growing.get((position, token))
        self._growing.clear()
        return taken.guesses if taken else []

    def _at(self, position: int, token: TokenId) -> Growing:
        return self._growing.get((position, token)) or Growing(position, token)


def _places(chain: Sequence[Guess], start: int) -> Iterator[tuple[float, int, TokenId]]:
    """Yield where branches can begin: the chance that the text goes there, position, token."""
    stands = 1.0
    for position, guess in enumerate(chain, start):
        yield from ((stands * chance, position, token) for token, chance in guess.others)
        stands *= guess.confidence
