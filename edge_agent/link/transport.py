"""The one seam between an answer's sessions and the network: the way to one verifier."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Transport(Protocol):
    """Errors are gateway.errors.ApiError: LinkDown where nothing comes, or what the verifier
    answered. Nothing is tried again here."""

    def open(
        self, frame: bytes, headers: Mapping[str, str], within_s: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a session by an Open, which has so long to be answered; give the pieces of its
        stream. Leaving it ends the session. A TimeoutError that leaves it is a LinkDown, too.
        """

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> bool:
        """Send drafts of a session. Return whether it was still there."""
