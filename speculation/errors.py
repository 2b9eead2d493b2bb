"""Every error that this package raises.

* SpeculationError
  + LocalProtocolError       our side broke the rules: a bug here, never the peer's fault
  + RemoteProtocolError      the peer broke the rules: end the session, keep the process
    - MalformedFrame         the bytes are not a message
  x InvalidSetting           a client asks for a value that no target serves; `name` names it
"""

from __future__ import annotations


class SpeculationError(Exception):
    """Base of all errors raised by this package."""


class LocalProtocolError(SpeculationError):
    """The caller asked for a step that the current state forbids."""


class RemoteProtocolError(SpeculationError):
    """The peer sent something that the current state forbids."""


class MalformedFrame(RemoteProtocolError):
    def __init__(self, reason: str, *, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")


class InvalidSetting(SpeculationError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
