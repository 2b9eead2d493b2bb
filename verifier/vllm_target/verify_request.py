"""What the scheduler asks of a step, session by session, and what the worker needs to judge it.

Values only; they travel pickled inside vLLM's own SchedulerOutput and ModelRunnerOutput. The
answer to an VerifyRequest is a `speculation.sampling.judging.Judgement`, or None where nothing was judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from speculation.protocol.messages import Judge, Sampling, TokenId


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings that make a distribution of logits; vLLM's own are left neutral."""

    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    bias: tuple[tuple[TokenId, float], ...] = ()
    """Added to the logits, once vLLM has applied penalties and masks, before the others."""

    @property
    def cuts(self) -> bool:
        """Whether any token can lose its probability."""
        return self.min_p > 0.0 or self.top_k > 0 or self.top_p < 1.0

    @staticmethod
    def of(sampling: Sampling, bias: tuple[tuple[TokenId, float], ...] = ()) -> Shape:
        """Take the settings from an Open."""
        return Shape(sampling.temperature, sampling.min_p, sampling.top_k, sampling.top_p, bias)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One session's part of a step that samples."""

    shape: Shape
    judge: Judge
    seed: int
    at: int
    """`noise.place` of the first row that is judged."""

    draft: tuple[TokenId, ...] = ()
    q: tuple[int, ...] = ()
    u: tuple[float, ...] = ()
    """`separate`: K + 1 fresh uniforms."""

    forced: TokenId | None = None
    """Committed already, not yet said by vLLM: the step's first token, whatever its p."""

    silent: bool = False
    """Say nothing beyond `forced`: no pass has begun. The row is there, and is not used."""

    @property
    def injected(self) -> int:
        """How many tokens vLLM takes for drafts."""
        return len(self.draft) + (self.forced is not None and not self.silent)
