"""What the scheduler asks the worker to judge in one step, session by session.

Values only: they travel pickled inside vLLM's SchedulerOutput. The worker answers with a
`speculation.judges.judge.Judgement`, inside vLLM's ModelRunnerOutput. Without one, the pass was
judged by noise that vLLM draws too, and all that vLLM generated is its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from picospec.speculation.judges.judge import Judgement, Row, Rule
from picospec.speculation.protocol.messages import Sampling, TokenId
from picospec.speculation.sampling.adjustments import Adjustment

NOTHING: Final = Judgement((), accepted=0)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One session's part of a step that samples."""

    sampling: Sampling
    """Our judge has yet to apply this to the logits. It has no extras."""

    rule: Rule | None
    """None where no pass has begun: nothing is generated beyond `forced`, and no row judged."""

    draft: tuple[TokenId, ...] = ()
    adjustment: Adjustment | None = None
    """What the session's other settings change of the first row that is judged; None: nothing,
    in no row."""

    forced: TokenId | None = None
    """A committed token that vLLM has not seen yet: the step's first token, whatever its p."""

    def judge(self, row: Row) -> Judgement:
        """Return the outcome of the pass, or nothing where none has begun."""
        return NOTHING if self.rule is None else self.rule.judge(row, self.draft)

    @property
    def owed(self) -> tuple[TokenId, ...]:
        """The step's first token, if it is forced."""
        return () if self.forced is None else (self.forced,)

    @property
    def injected(self) -> int:
        """How many tokens vLLM takes for draft tokens."""
        return len(self.draft) + (self.forced is not None and self.rule is not None)
