"""The edge's half of a session, without I/O.

The *chain* is the edge's guess of what follows the committed tokens. It grows by `extend`,
travels by `flush`, and shrinks from the front as Commits confirm it. The first committed token
that differs breaks it: the epoch rises and the chain is empty. The edge never waits for a
verdict, and what it shows is only what was committed.
No state changes when a method raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from speculation.protocol.errors import LocalProtocolError, RemoteProtocolError, TailExhausted
from speculation.protocol.messages import Commit, Draft, Redraw, Reject, TokenId
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.judging import replace


@dataclass(frozen=True, slots=True)
class Progress:
    """What a Commit brought."""

    tokens: tuple[TokenId, ...]
    """Committed now and not before."""

    broken: bool
    """The chain was wrong: the draft model must rewind to the committed tokens."""


class DraftingSession:
    """unused: of the session before, so that what it learned need not be learned again."""

    def __init__(
        self, *, max_tokens: int, stop_tokens: Sequence[TokenId], unused: int = 0
    ) -> None:
        self.epoch = 0
        self.committed: list[TokenId] = []
        self.chain: list[DraftToken] = []
        self.misses = 0
        """Chains in a row whose first guess was wrong."""

        self.unused = unused
        """Commits in a row that agreed with the chain and took nothing from it."""

        self._broke_at = 0
        self._sent = 0
        self._max_tokens = max_tokens
        self._stop_tokens = frozenset(stop_tokens)
        self._tail_owed = False

    @property
    def guessed(self) -> list[TokenId]:
        """Committed tokens and the chain after them: the draft model's context."""
        return [*self.committed, *(guess.token for guess in self.chain)]

    @property
    def survival(self) -> float:
        """The estimate that the whole chain stands: the product of its confidences."""
        return prod(guess.confidence for guess in self.chain)

    @property
    def since_break(self) -> int:
        """Tokens committed since the last chain broke."""
        return len(self.committed) - self._broke_at

    @property
    def unsent(self) -> int:
        return len(self.chain) - self._sent

    @property
    def away(self) -> int:
        """Guesses sent that no Commit has confirmed yet."""
        return self._sent

    @property
    def may_extend(self) -> bool:
        """Whether any token can follow the chain: it has not ended the answer."""
        last = [*self.committed[-1:], *(guess.token for guess in self.chain[-1:])]
        return self._may_follow(last, len(self.committed) + len(self.chain))

    def _may_follow(self, tokens: Sequence[TokenId], end: int) -> bool:
        ended = bool(tokens) and tokens[-1] in self._stop_tokens
        return not ended and end < self._max_tokens

    def extend(self, guess: DraftToken) -> None:
        """Add a guess drawn in the context `guessed`."""
        if not self.may_extend:
            raise LocalProtocolError("nothing can follow this chain")
        self.chain.append(guess)

    def flush(self, *, pauses: bool = False) -> Draft | None:
        """Return the guesses not yet sent, if any, as the next message to the verifier.

        pauses: none will follow until there is a Commit.
        """
        new = self.chain[self._sent :]
        if not new:
            return None
        draft = Draft(
            self.epoch,
            len(self.committed) + self._sent,
            self._sent,
            tuple(guess.token for guess in new),
            tuple(g.q.of(g.token) for g in new if g.q) if new[-1].q or new[0].forced else None,
            forced=new[0].forced,
            pauses=pauses,
        )
        self._sent = len(self.chain)
        return draft

    def receive(self, commit: Commit) -> Progress:
        """Take in committed tokens. What is known already is checked and passed over."""
        known = len(self.committed) - commit.start
        self._check(commit, known)
        tokens = commit.tokens[known:]
        self.committed.extend(tokens)
        epoch = self.epoch
        self._count_unused(commit, tokens)
        if tokens:
            agreed = sum(1 for _ in _agreement(self.chain, tokens))
            broken = agreed < min(len(tokens), len(self.chain))
            self._count_misses(agreed, broken)
            if broken:
                self._break()
            else:
                del self.chain[:agreed]
                self._sent = max(0, self._sent - agreed)
        return Progress(tokens, self.epoch > epoch)

    def _check(self, commit: Commit, known: int) -> None:
        """Raise RemoteProtocolError unless an honest verifier could say this."""
        count, logprobs = len(commit.tokens), commit.logprobs
        if known < 0:
            raise RemoteProtocolError(f"Commit.start: {commit.start} is {-known} tokens ahead")
        if commit.start + count > self._max_tokens:
            raise RemoteProtocolError(f"Commit.tokens: more than {self._max_tokens} in all")
        if list(commit.tokens[:known]) != self.committed[commit.start :][:count]:
            raise RemoteProtocolError(f"Commit.tokens: position {commit.start} has changed")
        if commit.accepted > count:
            raise RemoteProtocolError(f"Commit.accepted: {commit.accepted} of {count} tokens")
        if logprobs is not None and len(logprobs) != count:
            raise RemoteProtocolError("Commit.logprobs: one for each token")

    def _count_misses(self, agreed: int, broken: bool) -> None:
        """A replacement that is committed, as it must be, says nothing of the drafts."""
        if agreed > self._starts_forced:
            self.misses = 0
        elif broken:
            self.misses += 1

    def _count_unused(self, commit: Commit, tokens: Sequence[TokenId]) -> None:
        if commit.accepted > 0:
            self.unused = 0
        elif sum(1 for _ in _agreement(self.chain, tokens)) > self._starts_forced:
            self.unused += 1

    @property
    def _starts_forced(self) -> bool:
        return bool(self.chain) and self.chain[0].forced

    def rejected(self, reject: Reject, u: Iterator[float]) -> Redraw | None:
        """Replace the rejected token: the chain becomes the replacement, to be flushed.

        u: uniforms in [0, 1), independent of the verifier's. Return a Redraw when more samples
        of the tail are needed. A Reject seen before makes its answer be sent again: samples
        that were rejected once may not be tried a second time.
        """
        if reject.position < len(self.committed):
            return None
        if reject.position > len(self.committed) or not self.chain:
            raise RemoteProtocolError(f"Reject.position: no draft is at {reject.position}")
        rejected = self.chain[0]
        if rejected.forced:
            self._sent = 0
            return None
        if reject.epoch < self.epoch and self._tail_owed:
            return Redraw(self.epoch, reject.position)
        if reject.epoch != self.epoch:
            raise RemoteProtocolError(f"Reject.epoch: {reject.epoch}, not {self.epoch}")
        if rejected.q is None:
            raise RemoteProtocolError("Reject: only in judge `separate`")
        try:
            token = replace(reject, rejected.q, u, tail_owed=self._tail_owed)
        except TailExhausted:
            self._tail_owed = True
            self.epoch += 1
            return Redraw(self.epoch, reject.position)
        self._count_misses(0, broken=True)
        self._break()
        self.chain.append(DraftToken(token, confidence=1.0, forced=True))
        return None

    def _break(self) -> None:
        self.epoch += 1
        self.chain.clear()
        self._broke_at = len(self.committed)
        self._sent = 0
        self._tail_owed = False


def _agreement(chain: Sequence[DraftToken], tokens: Sequence[TokenId]) -> Iterator[TokenId]:
    """Yield tokens while the chain says the same."""
    for guess, token in zip(chain, tokens, strict=False):
        if guess.token != token:
            return
        yield token
