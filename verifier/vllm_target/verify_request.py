"""What the scheduler asks the worker to judge in one step, session by session.

Values only: they travel pickled inside vLLM's SchedulerOutput. The worker answers with a
`speculation.judges.judge.Judgement`, inside vLLM's ModelRunnerOutput. Without one, the pass was
judged by noise that vLLM draws too, and all that vLLM generated is its outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from picospec.speculation.judges.judge import Judgement, Row, Rule
from picospec.speculation.protocol.messages import Sampling, TokenId
from picospec.speculation.sampling.adjustments import Adjustment
from picospec.speculation.sampling.distributions import Distribution, Logits, distribution

NOTHING: Final = Judgement((), accepted=0)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One session's part of a step that samples."""

    sampling: Sampling
    """Our judge has yet to apply this to the logits. It has no extras."""

    rule: Rule | None
    """None where no pass has begun: nothing is generated, and no row judged."""

    draft: tuple[TokenId, ...] = ()
    """All of our tokens in the step."""

    told: int = 0
    """So many of them, the first ones, are committed, and vLLM is told so: they are accepted
    whatever their p, and stand before the pass."""

    adjustment: Adjustment | None = None
    """What the session's other settings change of the step's first row; None: nothing, in no
    row."""

    def judge_logits(self, logits: Callable[[int], Logits]) -> Judgement:
        """Return the outcome of the step, judged on the host. Rows are looked at one after
        another, and none after that of the first rejected draft token.

        logits(i): float32[V] of the i-th row that vLLM computed for the session, after the
        masks of grammars.
        """

        def row(i: int) -> Distribution:
            found = logits(i)
            if self.adjustment is not None:
                found = self.adjustment.after(self.draft[:i]).apply(found)
            return distribution(found, self.sampling)

        return self.judge(row)

    def judge(self, row: Row) -> Judgement:
        """Return the outcome of the step: of the pass, with the tokens before it."""
        if self.rule is None:
            return NOTHING
        found = self.rule.judge(lambda i: row(self.told + i), self.draft[self.told :])
        before = self.draft[: self.told]
        return replace(
            found, tokens=(*before, *found.tokens), accepted=self.told + found.accepted
        )
