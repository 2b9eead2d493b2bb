"""Every error this package raises.

* SpeculationError
  x ProtocolError
    + LocalProtocolError     our side broke the rules: a bug here, never the peer's fault
    + RemoteProtocolError    the peer broke them: end the session, keep the process
      - MalformedFrame       the bytes are not a message
  x TailExhausted            all samples of the tail were rejected: ask for more (Redraw)
"""

from __future__ import annotations


class SpeculationError(Exception):
    """Base of all errors raised by this package."""


class ProtocolError(SpeculationError):
    """A rule of the session protocol was broken. Raised only as one of its subclasses."""


class LocalProtocolError(ProtocolError):
    """The caller asked for a step that the current state forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the current state forbids."""


class MalformedFrame(RemoteProtocolError):
    """The peer's bytes do not decode to a message."""

    def __init__(self, reason: str, *, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset


class TailExhausted(SpeculationError):
    """All samples of the tail were rejected. Nothing has changed; ask for more, try again."""
