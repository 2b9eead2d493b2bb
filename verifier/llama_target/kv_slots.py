"""Lends the sequences of the KV cache to sessions, and knows what free ones still hold.

The next turn of a conversation begins with the tokens of the turns before, which need not be
decoded again. A token's KV has the same bits whatever pass it was decoded in
(tests/models/test_llama.py), so this changes no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.kv_reuse import common_prefix, reuse_cost
from speculation.protocol.messages import TokenId


class KvSlots:
    def __init__(self, count: int) -> None:
        self._held: dict[int, Sequence[TokenId]] = {place: () for place in range(count)}

    @property
    def free(self) -> int:
        """How many sequences are free."""
        return len(self._held)

    def take(self, prompt: Sequence[TokenId]) -> tuple[int, int]:
        """Return the free sequence that suits best, and how many tokens of `prompt` it holds.

        The last token is never counted, because the first pass decodes it. Raises ValueError if
        no sequence is free.
        """
        best = min(self._held, key=lambda place: reuse_cost(self._held[place], prompt))
        return best, common_prefix(self._held.pop(best), prompt[:-1])

    def give_back(self, place: int, held: Sequence[TokenId]) -> None:
        """Free a sequence. held: the tokens that its KV certainly holds, from position 0 on."""
        self._held[place] = held
