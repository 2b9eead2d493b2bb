"""What the scheduler asks the worker to judge in one step, session by session.

Values only: they travel pickled inside vLLM's SchedulerOutput. The worker answers with a
`speculation.sampling.judging.Judgement`, inside vLLM's ModelRunnerOutput. Without one, the pass
was judged `coupled`, and all that vLLM generated is its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from picospec.speculation.protocol.messages import Judge, Sampling, TokenId
from picospec.speculation.sampling.adjustments import Adjustment


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One session's part of a step that samples."""

    sampling: Sampling
    """What our judge has yet to apply to the logits. It has no extras."""

    judge: Judge
    seed: int
    at: int
    """`noise.place` of the first row that is judged."""

    draft: tuple[TokenId, ...] = ()
    q: tuple[int, ...] = ()
    u: tuple[float, ...] = ()
    """`separate`: K + 1 fresh uniforms."""

    adjustment: Adjustment | None = None
    """What the session's other settings change of the first row that is judged; None: nothing,
    in no row."""

    forced: TokenId | None = None
    """A committed token that vLLM has not seen yet: the step's first token, whatever its p."""

    silent: bool = False
    """No pass has begun: nothing is generated beyond `forced`, and no row is judged."""

    @property
    def owed(self) -> tuple[TokenId, ...]:
        """The step's first token, if it is forced."""
        return () if self.forced is None else (self.forced,)

    @property
    def injected(self) -> int:
        """How many tokens vLLM takes for draft tokens."""
        return len(self.draft) + (self.forced is not None and not self.silent)
