"""The sequences of the KV cache, and what those that are free still hold.

The next turn of a conversation begins with all that was said before: it need not be read again.
A token's KV has the same bits whatever pass it was decoded in (tests/models/test_llama.py), so
neither does this change a text.
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
        """How many sequences nobody has."""
        return len(self._held)

    def take(self, prompt: Sequence[TokenId]) -> tuple[int, int]:
        """Return the free sequence that suits best, and how many of `prompt` it holds.

        Never all of them: the last token opens the first pass. Raises ValueError if none is
        free.
        """
        best = min(self._held, key=lambda place: reuse_cost(self._held[place], prompt))
        return best, common_prefix(self._held.pop(best), prompt[:-1])

    def give_back(self, place: int, held: Sequence[TokenId]) -> None:
        """Free a sequence. held: the tokens its KV holds from position 0 on, for sure."""
        self._held[place] = held
