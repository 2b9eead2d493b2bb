"""Lends the sequences of the KV cache to sessions, and knows what free ones still hold.

The next turn of a conversation begins with the tokens of the turns before, which need not be
decoded again. A token's KV has the same bits whatever pass it was decoded in
(tests/models/test_llama.py), so this changes no text. An owner's tokens are for that owner
alone, see models.llama_cpp.kv_reuse.
"""

from __future__ import annotations

from collections.abc import Sequence

from picospec.models.llama_cpp.kv_reuse import common_prefix, reuse_cost
from picospec.speculation.protocol.messages import TokenId


class KvSlots:
    def __init__(self, count: int) -> None:
        self._held: dict[int, Sequence[TokenId]] = dict.fromkeys(range(count), ())
        self._owners: dict[int, str | None] = dict.fromkeys(range(count))
        """Says whose tokens a free sequence holds. None, where nobody is known, is an owner
        like others."""

    @property
    def free(self) -> int:
        """How many sequences are free."""
        return len(self._held)

    def take(self, prompt: Sequence[TokenId], owner: str | None = None) -> tuple[int, int]:
        """Return the free sequence that suits best, and how many tokens of `prompt` it holds.

        The last token is never counted, because the first pass decodes it. Raises ValueError if
        no sequence is free.
        """

        def cost(place: int) -> int:
            owned = self._owners[place] == owner
            return reuse_cost(self._held[place], prompt, owned=owned)

        best = min(self._held, key=cost)
        held = self._held.pop(best)
        return best, common_prefix(held, prompt[:-1]) if self._owners[best] == owner else 0

    def give_back(self, place: int, held: Sequence[TokenId], owner: str | None = None) -> None:
        """Free a sequence. held: the tokens that its KV certainly holds, from position 0 on,
        for a prompt of `owner`."""
        self._held[place], self._owners[place] = held, owner
