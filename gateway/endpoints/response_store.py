"""Keeps responses in memory, so that a conversation can continue one of them.

Each tenant has a store of its own and sees no other. A store has bounds in number, bytes and
age, and drops the least recently used responses first. All stores together have a bound in
bytes; beyond it the largest store drops responses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Final
from weakref import WeakKeyDictionary

from gateway.endpoints.background import RunningAnswer
from gateway.endpoints.recording import Recording
from gateway.errors import Overloaded
from gateway.request_context import Clock, RequestContext
from gateway.tenant_limits import Tenant

MAX_RESPONSES: Final = 1024
"""A tenant's store holds at most this many responses; the one used longest ago is dropped."""

MAX_BYTES: Final = 16 << 20
"""A tenant's store holds at most this many bytes of JSON: each response has its whole
conversation, 80 kB for 20,000 tokens."""

MAX_ALL_BYTES: Final = 256 << 20
"""All stores together hold at most this many bytes: sixteen full ones, or thousands of keys
with a conversation each."""

MAX_RUNNING: Final = 64
"""At most this many of a tenant's responses run in the background; the next gets a 429. They
count in no other bound of the store."""

MAX_AGE_S: Final = 6 * 3600.0
"""A response is kept for this many seconds after its last use."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    response: bytes
    items: bytes
    """These are all items before the response's output, as JSON."""

    events: Recording | None = None
    """The response can be streamed again from these; None if it cannot."""

    @property
    def size_bytes(self) -> int:
        events_bytes = self.events.size_bytes if self.events else 0
        return len(self.response) + len(self.items) + events_bytes


class ResponseStore:
    """Keeps the responses of one tenant by id. A lock guards it, because large bodies are read
    in a thread that looks up responses, too."""

    def __init__(self, clock: Clock, grown: Callable[[], None] = lambda: None) -> None:
        """grown: called when a response has been kept."""
        self._clock, self._grown = clock, grown
        self._kept: OrderedDict[str, tuple[StoredResponse, float]] = OrderedDict()
        self.size_bytes = 0
        self._lock = Lock()
        self._running: dict[str, RunningAnswer] = {}

    def begin(self, running: RunningAnswer) -> None:
        """Run a response, and keep it when it has ended. Raises Overloaded, Draining."""
        if len(self._running) >= MAX_RUNNING:
            raise Overloaded(f"no more than {MAX_RUNNING} responses run in the background")
        running.begin(partial(self._ended, id := running.answer.id))
        self._running[id] = running

    def running(self, id: str) -> RunningAnswer | None:
        """Return the response that runs in the background under an id."""
        return self._running.get(id)

    def _ended(self, id: str, running: RunningAnswer) -> None:
        del self._running[id]
        self.keep(id, StoredResponse(running.response, running.items, running.events))

    def keep(self, id: str, kept: StoredResponse) -> None:
        """Keep a response, unless it alone exceeds the bound in bytes."""
        if kept.size_bytes > MAX_BYTES:
            return
        with self._lock:
            self._kept[id] = kept, self._clock()
            self.size_bytes += kept.size_bytes
            self._clear()
        self._grown()

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

    def drop_oldest(self) -> None:
        """Drop the response that was used longest ago, if one is kept."""
        with self._lock:
            if self._kept:
                self._drop(next(iter(self._kept)))

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
        if (kept_response := self._kept.pop(id, None)) is not None:
            self.size_bytes -= kept_response[0].size_bytes


class ResponseStores:
    """Has the store of each tenant, for as long as the tenant exists."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Tenant, ResponseStore] = WeakKeyDictionary()
        self._lock = Lock()

    def of(self, context: RequestContext) -> ResponseStore:
        """Return the store of a request's tenant."""
        with self._lock:
            store = ResponseStore(context.clock, self._clear)
            return self._of.setdefault(context.tenant, store)

    def _clear(self) -> None:
        """Drop the oldest responses of the largest stores that exceed the bound together. What
        runs is in none of these."""
        with self._lock:
            stores = list(self._of.values())
        while sum(store.size_bytes for store in stores) > MAX_ALL_BYTES:
            max(stores, key=lambda store: store.size_bytes).drop_oldest()
