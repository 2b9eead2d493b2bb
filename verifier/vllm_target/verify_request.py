"""A VerifyRequest tells the worker what to judge in one step for one session.

It holds values only, and travels pickled inside vLLM's SchedulerOutput. The worker answers with
a `speculation.judge.Judgement` inside vLLM's ModelRunnerOutput. No answer means that
vLLM judged the pass by shared noise, and all tokens that it generated are the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from picospec.speculation.distributions import Distribution, Logits, distribution
from picospec.speculation.judge import Judgement, Row, Rule
from picospec.speculation.logits import Adjustment
from picospec.speculation.messages import Sampling, TokenId

NOTHING: Final = Judgement((), accepted=0)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """A VerifyRequest is one session's part of a step that samples."""

    sampling: Sampling
    """Our judge still applies these settings to the logits. They have no extras."""

    rule: Rule | None
    """The pass is judged by this rule; None if none has begun: then nothing is generated."""

    draft: tuple[TokenId, ...] = ()
    """The step has all of these tokens of ours."""

    known: int = 0
    """The first `known` tokens of the draft are committed, and only tell vLLM so: they precede
    the pass and are accepted whatever their p."""

    adjustment: Adjustment | None = None
    """This adjusts the logits of the step's first row to the session; None adjusts no row."""

    def judge_logits(self, logits: Callable[[int], Logits]) -> Judgement:
        """Return the outcome of the step, judged on the host. Rows are read one by one, and
        none after that of the first rejected draft token.

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
        """Return the outcome of the step: committed tokens, then those of the pass."""
        if self.rule is None:
            return NOTHING
        found = self.rule.judge(lambda i: row(self.known + i), self.draft[self.known :])
        before = self.draft[: self.known]
        return replace(
            found, tokens=(*before, *found.tokens), accepted=self.known + found.accepted
        )
