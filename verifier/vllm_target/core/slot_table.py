"""Which session has which vLLM request, and the frames of sessions that ended lately."""

from __future__ import annotations

from typing import Final

from verifier.vllm_target.core.session_slot import OutgoingFrame, SessionSlot

REMEMBERED: Final = 256
"""Finished sessions whose frames can still be asked for."""


class SlotTable:
    def __init__(self) -> None:
        self._slots: dict[str, SessionSlot] = {}
        self._requests: dict[str, str] = {}
        self._past: dict[str, SessionSlot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request_id: str, slot: SessionSlot) -> None:
        self._slots[request_id] = slot
        self._requests[slot.name] = request_id

    def of(self, request_id: str) -> SessionSlot | None:
        """Return a request's slot; None for requests that are no sessions."""
        return self._slots.get(request_id)

    def request_of(self, session: str) -> str | None:
        """Return the request of a running session."""
        return self._requests.get(session)

    def remove(self, request_id: str) -> SessionSlot | None:
        """Free a request's slot and return it; its frames are remembered for a while."""
        slot = self._slots.pop(request_id, None)
        if slot is None:
            return None
        self._requests.pop(slot.name, None)
        self._past[slot.name] = slot
        if len(self._past) > REMEMBERED:
            del self._past[next(iter(self._past))]
        return slot

    def recall(self, session: str, first: int) -> list[OutgoingFrame]:
        """Return what a session sent, from its `first`-th frame on."""
        request_id = self._requests.get(session)
        slot = self._past.get(session) if request_id is None else self._slots[request_id]
        return slot.frames[first:] if slot else []
