"""Keeps responses in memory, so that a conversation can continue one of them.

Each tenant has a store of its own and sees no other. A store has bounds in number, bytes and
age, and drops the least recently used responses first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final

from picospec.gateway.accounts.account import Clock

MAX_RESPONSES: Final = 128
"""A tenant's store holds at most this many responses."""

MAX_BYTES: Final = 16 << 20
"""A tenant's store holds at most this many bytes of JSON: each response has its whole
conversation, 80 kB for 20,000 tokens."""

MAX_AGE_S: Final = 6 * 3600.0
"""A response is kept for this many seconds after its last use."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    response: bytes
    """This is the response, as JSON."""

    items: bytes
    """These are all items before the response's output, as JSON."""

    @property
    def size_bytes(self) -> int:
        return len(self.response) + len(self.items)


class ResponseStore:
    """Keeps the responses of one tenant by id. A lock guards it, because large bodies are read
    in a thread that looks up responses, too."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[StoredResponse, float]] = OrderedDict()
        self.size_bytes = 0
        """All kept responses together have this many bytes."""

        self._lock = Lock()

    def keep(self, id: str, kept: StoredResponse) -> None:
        """Keep a response, unless it alone exceeds the bound in bytes."""
        if kept.size_bytes > MAX_BYTES:
            return
        with self._lock:
            self._kept[id] = kept, self._clock()
            self.size_bytes += kept.size_bytes
            self._clear()

    def find(self, id: str) -> StoredResponse | None:
        """Return the response kept under an id, and record its use."""
        with self._lock:
            self._clear()
            if id not in self._kept:
                return None
            kept, _ = self._kept[id]
            self._kept[id] = kept, self._clock()
            self._kept.move_to_end(id)
            return kept

    def remove(self, id: str) -> None:
        with self._lock:
            self._drop(id)

    def _clear(self) -> None:
        """Drop the responses that exceed the bounds."""
        oldest = self._clock() - MAX_AGE_S
        while self._kept:
            id, (_, used_s) = next(iter(self._kept.items()))
            full = len(self._kept) > MAX_RESPONSES or self.size_bytes > MAX_BYTES
            if not full and used_s > oldest:
                return
            self._drop(id)

    def _drop(self, id: str) -> None:
        if (found := self._kept.pop(id, None)) is not None:
            self.size_bytes -= found[0].size_bytes
