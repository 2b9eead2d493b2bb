"""A pool of answers for each owner: none is drafted from what another one was answered."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from picospec.speculation.proposing.pool import Pool
from picospec.speculation.protocol.messages import ModelFacts

MIN_TOKENS: Final = 1024
"""A smaller pool would hold no answer that is worth keeping."""


class Pools:
    """An owner is the object that stands for whoever asks, such as the holder of a key. What is
    kept for one is gone when the owner is, and when the target has another vocabulary.

    most_tokens: kept for each owner; at 0 nothing is.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens and max(MIN_TOKENS, most_tokens)
        self._kept: WeakKeyDictionary[object, tuple[str, Pool]] = WeakKeyDictionary()

    def of(self, owner: object | None, target: ModelFacts) -> Pool | None:
        """Return an owner's; None where nothing is kept, as for nobody in particular."""
        if owner is None or not self._most_tokens:
            return None
        kept = self._kept.get(owner)
        if kept is None or kept[0] != target.vocabulary:
            kept = self._kept[owner] = target.vocabulary, Pool(self._most_tokens)
        return kept[1]

    def empty(self, owner: object) -> None:
        """Forget what is kept for an owner; answers that have begun still draft from it."""
        self._kept.pop(owner, None)
