"""The draft tokens that the verifier keeps of a session's newest epoch.

They are compared with the committed text as far as both reach. At the first difference the
chain and its epoch end; the edge's next Draft begins another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from speculation.errors import RemoteProtocolError
from speculation.learning import running_mean
from speculation.messages import Draft
from speculation.model_facts import TokenId

ACCEPTANCE_PRIOR: Final = 0.9
"""The estimated acceptance before any draft token was compared; it counts as one observation.
It is on the high side, because at first a row too many costs less than one too few. Found with
`python -m bench.simulator`: 0.8 slows code by 2 %."""

ACCEPTANCE_WEIGHT: Final = 1 / 16
"""The latest comparison has this weight in the running mean; the first few weigh more."""


class Chain:
    """start: the first position that can be drafted; the edge knows the text before it."""

    def __init__(self, start: int = 0) -> None:
        self.epoch = 0
        self.newest = (0, 0)
        """Epoch and end of the newest draft tokens to arrive, without void ones."""

        self.broken = False  # the chain was found wrong, and no pass has begun since
        self.wrong_at = 0  # the position of the latest difference
        self.dropped: tuple[TokenId, ...] = ()
        """The tokens of the last broken chain, from the wrong token on."""

        self.acceptance = ACCEPTANCE_PRIOR
        """The estimated probability that a draft token equals the text if those before it do.
        It is learned from every draft token that arrives, judged or overtaken."""

        self._compared = 0
        self._void = -1  # epochs up to this one are known to be wrong
        self._agreed = start  # positions before this one are known to equal the text
        self._drafts: dict[int, tuple[TokenId, int]] = {}  # from _agreed on: token and weight
        self.reach = start
        """The position after the last draft token that follows without a gap; the text may have
        gone further."""

    def is_void(self, epoch: int) -> bool:
        return epoch <= self._void

    def drafts(self, start: int, count: int) -> list[tuple[TokenId, int]]:
        """Return `count` draft tokens from a position on, with their weights in 1/Q_SCALE."""
        return [self._drafts[position] for position in range(start, start + count)]

    def begin(self, draft: Draft) -> None:
        """Note the arrival of a Draft that is not void. `extend` must follow. Raise
        RemoteProtocolError if an epoch has two tokens at one position."""
        if draft.epoch == self.epoch:
            for position, token in enumerate(draft.tokens, draft.start):
                if self._drafts.get(position, (token,))[0] != token:
                    raise RemoteProtocolError(f"Draft.tokens: position {position} has changed")
        self.newest = max(self.newest, (draft.epoch, draft.start + len(draft.tokens)))
        if draft.epoch > self.epoch:
            self.epoch = draft.epoch
            self._agreed = self.reach = draft.start - draft.offset
            self._drafts.clear()

    def extend(self, draft: Draft, text: Sequence[TokenId]) -> None:
        """Add a Draft's tokens and compare them with the text."""
        weights = draft.q or (0,) * len(draft.tokens)
        placed = enumerate(zip(draft.tokens, weights, strict=True), draft.start)
        self._drafts.update((at, item) for at, item in placed if at >= self._agreed)
        self._extend_reach()
        self.follow(text, draft.start - draft.offset)

    def _extend_reach(self) -> None:
        self.reach = max(self.reach, self._agreed)
        while self.reach in self._drafts:
            self.reach += 1

    def rejected(self, text: Sequence[TokenId]) -> None:
        """End the chain at a draft token that was rejected after this text; the token in its
        place is not known yet."""
        self.follow(text)
        self._learn(False)
        self._end(len(text))

    def _end(self, position: int) -> None:
        """End the chain at a position; its epoch is void from now on."""
        self.wrong_at = position
        self._void = self.epoch
        self._drafts.clear()
        self.reach = self._agreed
        self.broken = True

    def follow(self, text: Sequence[TokenId], known: int = 0) -> None:
        """Compare the chain with the text, from the first position that is not known to agree.
        known: the edge had the text before this position when it made the chain, so a missing
        draft token there is no gap."""
        while self._agreed < len(text):
            if draft := self._drafts.pop(self._agreed, None):
                right = draft[0] == text[self._agreed]
                self._learn(right)
                if not right:
                    self.dropped = (draft[0], *self._after(self._agreed))
                    self._end(self._agreed)
                    return
            elif self._agreed >= known:
                return
            self._agreed += 1
            if self._agreed > self.reach:  # past a token that the edge knew
                self._extend_reach()

    def _after(self, position: int) -> Iterator[TokenId]:
        """Yield the draft tokens after a position, up to the first gap."""
        while draft := self._drafts.get(position := position + 1):
            yield draft[0]

    def _learn(self, right: bool) -> None:
        self._compared += 1
        weight = max(ACCEPTANCE_WEIGHT, 1 / (1 + self._compared))
        self.acceptance = running_mean(self.acceptance, right, weight)


def check(draft: Draft, text_end: int, *, vocabulary_size: int, max_ahead: int) -> None:
    """Raise RemoteProtocolError, naming the field, for a Draft that no correct edge sends.

    text_end: the length of the text that the edge may know. That is never more than the
    verifier knows, except for a recovered token that the edge draws. So a late, early or
    repeated Draft raises none of these errors.
    """
    if not draft.tokens:
        raise RemoteProtocolError("Draft.tokens: empty")
    if (highest := max(draft.tokens)) >= vocabulary_size:
        raise RemoteProtocolError(f"Draft.tokens: {highest} is not a token")
    if draft.offset > draft.start:
        raise RemoteProtocolError(f"Draft.offset: {draft.offset} are not before {draft.start}")
    ahead = draft.start + len(draft.tokens) - text_end
    if ahead > max_ahead:
        raise RemoteProtocolError(f"Draft.start: {ahead} ahead, over {max_ahead}")
    if draft.start - draft.offset > text_end:
        raise RemoteProtocolError(f"Draft.offset: {draft.offset} leave a gap to the text")
