"""The account of one request: what the log line, the metrics and `timings` are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.metrics import Metrics
from gateway.ports import Statistics
from gateway.reading import Said
from gateway.statistics import total

Clock = Callable[[], float]
"""Seconds, monotonic."""


@dataclass(slots=True)
class Account:
    request_id: str
    metrics: Metrics
    clock: Clock
    started_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    """As logged and counted: 499 for a client that went away, whatever was sent before."""

    error: str | None = None
    """Code of the error the client got, by status or as an event in the stream."""

    fault: Exception | None = None
    """A bug here: its traceback belongs in the log."""

    first_token_s: float | None = None
    """Since the start."""

    statistics: dict[int, Statistics] = field(default_factory=dict)
    """Of each choice, by index: the latest known."""

    _last_s: dict[int, float] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started_s

    def took_prompt(self, tokens: int) -> None:
        self.prompt_tokens = tokens
        self.metrics.prompt_tokens.inc(tokens)

    def heard(self, index: int, said: Said) -> None:
        """Count what choice `index` said."""
        if said.statistics is not None:
            self.statistics[index] = said.statistics
        if said.tokens:
            self.completion_tokens += said.tokens
            self.metrics.generation_tokens.inc(said.tokens)
            self._time(index, said.tokens)

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
        return {
            "prompt_n": self.prompt_tokens,
            "prompt_ms": prompt_s * 1000,
            "predicted_n": self.completion_tokens,
            "predicted_ms": predicted_s * 1000,
            "predicted_per_second": self.completion_tokens / predicted_s
            if predicted_s
            else 0.0,
            "draft_n": counted.draft_tokens,
            "draft_n_accepted": counted.accepted_tokens,
        }

    def _time(self, index: int, tokens: int) -> None:
        now_s = self.elapsed_s
        if self.first_token_s is None:
            self.first_token_s = now_s
            self.metrics.first_token_s.observe(now_s)
        last_s = self._last_s.get(index)
        self._last_s[index] = now_s
        if last_s is not None:
            for _ in range(tokens):
                self.metrics.token_gap_s.observe((now_s - last_s) / tokens)
