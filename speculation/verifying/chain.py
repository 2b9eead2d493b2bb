"""What the verifier holds of the edge's guesses: the newest chain.

The chain is compared with the text wherever both have come to. Where it is wrong it ends, and
its epoch with it; the edge's next Draft begins another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Draft, TokenId
from speculation.smoothing import smoothed

Tokens = tuple[TokenId, ...]

ACCEPTANCE_AT_FIRST: Final = 0.9
"""Rather too high: at first a row too many costs less than one too few; .8 costs code 2 %.
Counts as one draft: as four, a drafter that is always wrong cost 2 to 3 % of 64 tokens."""

ACCEPTANCE_WEIGHT: Final = 1 / 16
"""Of the latest draft in the running mean; the first few weigh more, as in a plain mean."""


class HeldChain:
    def __init__(self) -> None:
        self.epoch = 0
        self.heard = (0, 0)
        """Epoch and end of the latest drafts to come, those known to be wrong left out."""

        self.broken = False
        """It was wrong, and no pass has begun since."""

        self.wrong_at = 0
        """Where it was wrong."""

        self.acceptance = ACCEPTANCE_AT_FIRST
        """Running estimate that a draft equals the text where the ones before it do; learned
        from every draft that arrives, judged or overtaken."""

        self._compared = 0
        self._void = -1  # epochs up to this one are known to be wrong
        self._agreed = 0  # positions before this one are known to equal the text
        self._drafts: dict[int, tuple[TokenId, int]] = {}  # from _agreed on: token, weight

    @property
    def reach(self) -> int:
        """The position after its last draft; the text may have gone further."""
        end = self._agreed
        while end in self._drafts:
            end += 1
        return end

    def is_void(self, epoch: int) -> bool:
        """Return whether the chains up to an epoch are known to be wrong."""
        return epoch <= self._void

    def drafts(self, start: int, count: int) -> list[tuple[TokenId, int]]:
        """Return `count` drafts from a position on: tokens, and weights in 1/Q_SCALE."""
        return [self._drafts[position] for position in range(start, start + count)]

    # --- what the edge says

    def hear(self, draft: Draft) -> None:
        """A Draft came that is not void: its epoch is the newest. `extend` must follow.

        Raise RemoteProtocolError when an epoch says two tokens at one position.
        """
        if draft.epoch == self.epoch:
            self._check_unchanged(draft)
        self.heard = max(self.heard, (draft.epoch, draft.start + len(draft.tokens)))
        if draft.epoch > self.epoch:
            self.epoch = draft.epoch
            self._agreed = draft.start - draft.behind
            self._drafts.clear()

    def _check_unchanged(self, draft: Draft) -> None:
        for position, token in enumerate(draft.tokens, draft.start):
            if self._drafts.get(position, (token,))[0] != token:
                raise RemoteProtocolError(f"Draft.tokens: position {position} has changed")

    def extend(self, draft: Draft, text: Sequence[TokenId]) -> None:
        """Hold a Draft's guesses, its forced token left out."""
        guesses = draft.tokens[draft.forced :]
        weights = (0,) * len(guesses) if draft.q is None else draft.q
        placed = enumerate(zip(guesses, weights, strict=True), draft.start + draft.forced)
        self._drafts.update((at, item) for at, item in placed if at >= self._agreed)
        self._compare(text, draft.start - draft.behind + draft.forced)

    # --- what the target says

    def follow(self, text: Sequence[TokenId]) -> None:
        """The text has grown."""
        self._compare(text, self._agreed)

    def rejected(self, position: int) -> None:
        """The draft at a position does not stand; what does is not known yet."""
        self._learn(False)
        self.end(position)

    def end(self, position: int, epoch: int = 0) -> None:
        """It is wrong at a position, as are those of earlier epochs, and of `epoch`."""
        self.wrong_at = position
        self.epoch = self._void = max(self.epoch, epoch)
        self._drafts.clear()
        self.broken = True

    def _compare(self, text: Sequence[TokenId], known: int) -> None:
        """Go on from the first position that is not known; before `known` the edge agrees."""
        while self._agreed < len(text):
            guess = self._drafts.pop(self._agreed, None)
            if guess is None and self._agreed >= known:
                return
            if guess is not None:
                stands = guess[0] == text[self._agreed]
                self._learn(stands)
                if not stands:
                    self.end(self._agreed)
                    return
            self._agreed += 1

    def _learn(self, stands: bool) -> None:
        self._compared += 1
        weight = max(ACCEPTANCE_WEIGHT, 1 / (1 + self._compared))
        self.acceptance = smoothed(self.acceptance, stands, weight)
