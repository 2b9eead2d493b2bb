"""Which session sits where: by vLLM's request, by its own name, and lately gone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from verifier.vllm_target.admission import Admission
from verifier.vllm_target.core.session_slot import OutgoingFrame, Seat

REMEMBERED: Final = 256
"""Finished sessions whose frames can still be asked for."""


class SlotTable:
    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}
        self._requests: dict[str, str] = {}
        self._past: OrderedDict[str, Seat] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seats)

    def seat(self, request_id: str, admission: Admission, now: float) -> None:
        """Give a request's session a seat; a request seated before keeps its own."""
        if request_id not in self._seats:
            self._seats[request_id] = Seat(admission, now)
            self._requests[admission.session] = request_id

    def of(self, request_id: str) -> Seat | None:
        """Return a request's seat; None for requests that are no sessions."""
        return self._seats.get(request_id)

    def find(self, session: str) -> tuple[str, Seat] | None:
        """Return a running session's request and seat."""
        request_id = self._requests.get(session)
        return None if request_id is None else (request_id, self._seats[request_id])

    def leave(self, request_id: str) -> None:
        """Free a seat; what was said there is remembered for a while."""
        seat = self._seats.pop(request_id, None)
        if seat is None:
            return
        session = seat.admission.session
        self._requests.pop(session, None)
        self._past[session] = seat
        if len(self._past) > REMEMBERED:
            self._past.popitem(last=False)

    def recall(self, session: str, first: int) -> list[OutgoingFrame]:
        """Return what a session said, from its `first`-th frame on."""
        found = self.find(session)
        seat = found[1] if found else self._past.get(session)
        return seat.frames[first:] if seat else []
