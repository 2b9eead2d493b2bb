"""How long a session may wait, and for what: rules over what was seen of it, without a clock.

All times are in seconds, on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculation.protocol.messages import Fault
from verifier.settings import SessionSettings


@dataclass(slots=True)
class Timeouts:
    settings: SessionSettings
    active_at: float
    """When the last draft arrived or the last reply was generated."""

    unread_since: float | None
    """When the last reader left; None while there is one."""

    started: bool = False
    """Whether the target has sent a reply."""

    rejected_at: float | None = None
    """When the replacement that is awaited was asked for."""

    def expiry(self) -> tuple[float, Fault]:
        """Return when the session ends if nothing happens, and the Fault it then ends with."""
        return min(self._rules(), key=lambda rule: rule[0])

    def _rules(self) -> Iterator[tuple[float, Fault]]:
        settings = self.settings
        idle_s = settings.idle_timeout_s if self.started else settings.first_token_timeout_s
        text = f"no draft came and nothing was said for {idle_s:g} s"
        yield self.active_at + idle_s, Fault("idle_timeout", text)
        if self.unread_since is not None:
            window_s = settings.resume_window_s
            text = f"nobody resumed the session within {window_s:g} s"
            yield self.unread_since + window_s, Fault("cancelled", text)
        if self.rejected_at is not None:
            allowed_s = settings.replacement_timeout_s
            text = f"no replacement for the refused token within {allowed_s:g} s"
            yield self.rejected_at + allowed_s, Fault("replacement_timeout", text)
