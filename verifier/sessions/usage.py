"""The tokens, times and ending of one session are counted in the metrics, and reported by its
span."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.metrics import ModelMetrics
from gateway.tracing import Fact, Span
from speculation.messages import (
    Fault,
    Finish,
    Totals,
)


@dataclass(slots=True)
class SessionUsage:
    """Counts for one session. span: the session's. opened: time of its admission, by the clock
    of `now`."""

    metrics: ModelMetrics
    span: Span
    opened: float
    _tokens: int = 0
    _first_token_s: float = 0.0
    _last: float | None = None  # time of the latest Commit

    def committed(self, tokens: int, now: float) -> None:
        """Count a Commit. The gap before it is observed once, as the mean over its tokens."""
        self._tokens += tokens
        self.metrics.generation_tokens.inc(tokens)
        if self._last is None:
            self._first_token_s = now - self.opened
            self.metrics.first_token_s.observe(self._first_token_s)
        else:
            self.metrics.token_gap_s.observe((now - self._last) / tokens)
        self._last = now

    def finished(self, now: float) -> None:
        """Record that the answer is complete."""
        self.metrics.request_s.observe(now - self.opened)

    def close(self, ending: Finish | Fault | None) -> None:
        """End the span with the counts, and with the error code of a Fault."""
        totals = ending.totals if isinstance(ending, Finish) else Totals()
        if isinstance(ending, Finish):
            self.metrics.ended(ending.reason)
        elif ending is not None:
            self.metrics.success["abort" if ending.code == "cancelled" else "error"].inc()
        facts: dict[str, Fact] = {
            "completion_tokens": self._tokens,
            "first_token_s": self._first_token_s,
            "passes": totals.passes,
            "draft_tokens": totals.judged,
            "accepted_tokens": totals.accepted,
            "acceptance": totals.accepted / max(1, totals.judged),
        }
        self.span.end(ending.code if isinstance(ending, Fault) else None, **facts)
