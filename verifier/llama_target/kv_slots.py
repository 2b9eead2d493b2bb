"""Lends the sequences of the KV cache to sessions, and remembers what the free ones still hold.

The next turn of a conversation begins with the tokens of the turns before, which need not be
decoded again. A token's KV has the same bits whatever pass it was decoded in
(tests of local_models.llama_cpp.model), so reuse changes no text. The tokens of an owner are
reused only for that owner, see local_models.llama_cpp.prefix.

A prompt takes the sequence with the least to decode and the least to lose. Tokens that were
unused for long weigh less. Otherwise finished conversations would keep their sequences for
ever, and active ones, which are shorter, would take one another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from local_models.llama_cpp.prefix import common_prefix
from speculation.model_facts import TokenId
from verifier.llama_target.slot import Slot

S = TypeVar("S", bound=Slot)


class KvSlots:
    def __init__(self, count: int) -> None:
        self._held: dict[int, Sequence[TokenId]] = dict.fromkeys(range(count), ())
        self._lengths: dict[int, Sequence[int] | None] = dict.fromkeys(range(count))
        """A prompt can go on from these lengths of a sequence alone; None: from each."""

        self._owners: dict[int, str | None] = dict.fromkeys(range(count))
        """The tokens of a free sequence belong to this owner. None, the unknown owner, is an
        owner like any other."""

        self._takes = 0
        self._released: dict[int, int] = dict.fromkeys(range(count), 0)  # _takes at that time

    @property
    def free(self) -> int:
        """Return the number of free sequences."""
        return len(self._held)

    def take(self, prompt: Sequence[TokenId], owner: str | None = None) -> tuple[int, int]:
        """Return the best free sequence, and the number of tokens of `prompt` that it holds.

        The last token is never counted, because the first pass decodes it. Raises ValueError if
        no sequence is free.
        """
        best = min(self._held, key=lambda sequence: self._cost(sequence, prompt, owner))
        reused = self._common(best, prompt[:-1], owner)
        del self._held[best]
        self._takes += 1
        return best, reused

    def _common(self, sequence: int, prompt: Sequence[TokenId], owner: str | None) -> int:
        """Return the number of tokens of a prompt that a free sequence can go on from."""
        held = self._held[sequence]
        common = common_prefix(held, prompt) if self._owners[sequence] == owner else 0
        if (lengths := self._lengths[sequence]) is None:
            return common
        return max((length for length in lengths if length <= common), default=0)

    def release(
        self,
        sequence: int,
        held: Sequence[TokenId],
        owner: str | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Free a sequence. held: the tokens that its KV certainly holds, from position 0 on,
        for a prompt of `owner`. lengths: a recurrent model can go on from these alone."""
        self._held[sequence], self._owners[sequence] = held, owner
        self._lengths[sequence] = lengths
        self._released[sequence] = self._takes

    def _cost(self, sequence: int, prompt: Sequence[TokenId], owner: str | None) -> float:
        held, unused = self._held[sequence], self._takes - self._released[sequence]
        common = self._common(sequence, prompt, owner)
        lost = (len(held) - common) / (1 + unused / len(self._owners))
        return len(prompt) - common + lost
