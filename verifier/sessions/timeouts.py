"""These rules say when a session expires, by a wait or by its age, and with which Fault. They
have no clock.

All times are in seconds, on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculation.messages import (
    Fault,
)
from verifier.settings import SessionSettings


@dataclass(slots=True)
class Timeouts:
    settings: SessionSettings
    opened_at: float
    active_at: float
    """The edge's last draft arrived then, or the target's last reply was generated."""

    started: bool = False
    """True once the target has sent a reply."""

    rejected_at: float | None = None
    """A replacement has been awaited since this time; None while none is awaited."""

    def expiry(self) -> tuple[float, Fault]:
        """Return when the session expires if nothing happens, and the Fault that ends it."""
        at, wait_s, code, text = min(self._rules(), key=lambda rule: rule[0] + rule[1])
        return at + wait_s, Fault(code, f"{text} {wait_s:g} s", retryable=code != "max_age")

    def _rules(self) -> Iterator[tuple[float, float, str, str]]:
        """Yield for each wait its beginning, its limit, and the code and text of its Fault."""
        allowed, reason = self.settings, "no draft came and nothing was said for"
        idle_s = allowed.idle_timeout_s if self.started else allowed.first_token_timeout_s
        yield self.active_at, idle_s, "idle_timeout", reason
        yield self.opened_at, allowed.max_age_s, "max_age", "an answer may take at most"
        if self.rejected_at is not None:
            reason = "no replacement for the rejected token within"
            yield self.rejected_at, allowed.replacement_timeout_s, "replacement_timeout", reason
