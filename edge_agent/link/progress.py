"""Decides when a session that is alive is given up: its verifier sends, and no token comes.

It has no clock: it is given the times, in seconds.
"""

from __future__ import annotations

from typing import Final

from picospec.gateway.errors import Unavailable
from picospec.speculation.protocol.messages import Limits

FIRST_TOKEN_S: Final = 600.0
"""The longest wait for the first token of a session, which waits for a slot and for its prompt
to be read. A verifier's own timeout for this is as long by default."""

LATE_S: Final = 30.0
"""How much later than a verifier its edge gives up, so that the verifier's own Fault comes
first. A draft that was on its way may have extended the verifier's timeout."""

MAX_IDLE: Final = 4096
"""The most messages and cuts in a row without a token. Beats are 2,100 in the longest
wait; more messages than that only take this machine's time."""

IDLE: Final = "idle_timeout"


class Progress:
    """It lasts across sessions that one process of a verifier opens one after another."""

    def __init__(self, now: float) -> None:
        self.begin(now)

    def begin(self, now: float) -> None:
        """A verifier begins, which may have to read the prompt."""
        self._since = now
        self._allowed_s = FIRST_TOKEN_S + LATE_S
        self._idle = 0

    def token_came(self, now: float, limits: Limits) -> None:
        self._since, self._idle = now, 0
        self._allowed_s = min(limits.idle_timeout_s, FIRST_TOKEN_S) + LATE_S

    def nothing_came(self, now: float) -> None:
        """A message had no token, or a stream has ended. Raises Unavailable."""
        self._idle += 1
        if now - self._since > self._allowed_s:
            raise Unavailable(
                f"the verifier sent no token for {now - self._since:.0f} s", code=IDLE
            )
        if self._idle > MAX_IDLE:
            raise Unavailable(
                f"the verifier sent {MAX_IDLE} messages without a token", code=IDLE
            )
