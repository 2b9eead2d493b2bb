"""Bounds what an edge may send of one session, in proportion to what it is sent.

Between two replies a correct edge sends the tokens of one chain, which has at most max_ahead of
them: a Commit breaks the chain once, or makes room for as many more as it confirms. Only a
request that failed makes it send some again.
"""

from __future__ import annotations

from typing import Final

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Draft, Pushed

CHAINS_A_REPLY: Final = 2
"""Chains that a Commit or a Reject allows: twice what a correct edge sends."""

CHAINS_AT_FIRST: Final = 16
"""Chains that are allowed beyond those. The first chain needs one. An edge sends a request that
failed four times at most."""


class DraftBudget:
    """In draft tokens; a Redraw counts as one. max_ahead: of the session's Limits."""

    def __init__(self, max_ahead: int) -> None:
        self._reply_tokens = CHAINS_A_REPLY * max_ahead
        self._left = CHAINS_AT_FIRST * max_ahead

    def replied(self) -> None:
        """The session has sent a Commit or a Reject."""
        self._left += self._reply_tokens

    def take(self, message: Pushed) -> None:
        """Count a message. Raises RemoteProtocolError for more than a correct edge sends."""
        self._left -= len(message.tokens) if isinstance(message, Draft) else 1
        if self._left < 0:
            raise RemoteProtocolError("Draft.tokens: more in all than a correct edge sends")
