"""The tokenizers in memory are shared by all models, up to a size in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol
from weakref import WeakSet

from local_models.llama_cpp.footprint import TOKEN_BYTES
from local_models.tokenizer import Tokenizer

MAX_OPEN_BYTES: Final = 1 << 30
"""The tokenizers in memory together, with what grammars make of them, take about this much."""


class TokenizerUser(Protocol):
    """It has a tokenizer, and lets go of it when it is dropped."""

    @property
    def digest(self) -> str: ...

    def forget(self) -> None: ...


class OpenTokenizers:
    """The tokenizers in memory, by digest: those used last, in most_bytes together, and the
    last one whatever it takes. They are shared by all models."""

    def __init__(self, most_bytes: int = MAX_OPEN_BYTES) -> None:
        self._most_bytes = most_bytes
        self._open: OrderedDict[str, tuple[Tokenizer, int]] = OrderedDict()
        self.users: WeakSet[TokenizerUser] = WeakSet()
        """They let go of a tokenizer that is dropped."""

    def get(self, digest: str) -> Tokenizer | None:
        """Return a tokenizer, which counts as used now; None if it is not in memory."""
        if digest not in self._open:
            return None
        self._open.move_to_end(digest)
        return self._open[digest][0]

    def add(self, digest: str, tokenizer: Tokenizer) -> None:
        """Keep a tokenizer, and drop those not used for longest."""
        self._open[digest] = tokenizer, len(tokenizer.vocabulary.pieces) * TOKEN_BYTES
        while len(self._open) > 1 and self._bytes > self._most_bytes:
            dropped, _ = self._open.popitem(last=False)
            for user in [user for user in self.users if user.digest == dropped]:
                user.forget()

    @property
    def _bytes(self) -> int:
        return sum(size for _, size in self._open.values())
