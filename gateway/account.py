"""Counts one request's tokens and times for the log line, the metrics and `timings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.detokenise import TextDelta
from gateway.metrics import Metrics
from gateway.ports import Statistics
from gateway.statistics import total

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""


@dataclass(slots=True)
class Account:
    request_id: str
    metrics: Metrics
    clock: Clock
    started_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    """The HTTP status to log and count: 499 if the client left, even after a 200 was sent."""

    error: str | None = None
    """The code of the error that the client got, as a response or as an event in the stream."""

    fault: Exception | None = None
    """An exception that is a bug of this service; its traceback is logged."""

    first_token_s: float | None = None
    """Time from the start of the request to its first generated token."""

    statistics: dict[int, Statistics] = field(default_factory=dict)
    """The latest statistics of each choice, by its index."""

    _last_s: dict[int, float] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started_s

    def took_prompt(self, tokens: int) -> None:
        self.prompt_tokens = tokens
        self.metrics.prompt_tokens.inc(tokens)

    def count(self, index: int, delta: TextDelta) -> None:
        """Count what choice `index` generated."""
        if delta.statistics is not None:
            self.statistics[index] = delta.statistics
        if delta.tokens:
            self.completion_tokens += delta.tokens
            self.metrics.generation_tokens.inc(delta.tokens)
            self._observe_latency(index, delta.tokens)

    def usage(self) -> dict[str, int]:
        """Return OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def timings(self) -> dict[str, float]:
        """Return llama.cpp's `timings`; "prompt" is the time to the first token."""
        prompt_s = self.first_token_s or 0.0
        predicted_s = self.elapsed_s - prompt_s
        counted = total(self.statistics.values())
        rate = self.completion_tokens / predicted_s if predicted_s else 0.0
        return {
            "prompt_n": self.prompt_tokens,
            "prompt_ms": prompt_s * 1000,
            "predicted_n": self.completion_tokens,
            "predicted_ms": predicted_s * 1000,
            "predicted_per_second": rate,
            "draft_n": counted.draft_tokens,
            "draft_n_accepted": counted.accepted_tokens,
        }

    def _observe_latency(self, index: int, tokens: int) -> None:
        now_s = self.elapsed_s
        if self.first_token_s is None:
            self.first_token_s = now_s
            self.metrics.first_token_s.observe(now_s)
        last_s = self._last_s.get(index)
        self._last_s[index] = now_s
        if last_s is not None:
            for _ in range(tokens):
                self.metrics.token_gap_s.observe((now_s - last_s) / tokens)
