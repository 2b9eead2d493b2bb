"""A VerifyRequest tells the worker what to judge in one step for one session.

It holds values only, and travels pickled inside vLLM's SchedulerOutput. The worker answers
with a `speculation.judge.Judgement` inside vLLM's ModelRunnerOutput. No answer means that
vLLM judged the pass by shared noise, and all tokens that it generated are the outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from speculation.distributions import Distribution, Logits, distribution
from speculation.judge import Judgement, Row, Rule
from speculation.logits import Adjustment
from speculation.messages import Sampling
from speculation.model_facts import TokenId

MOST_ROWS: Final = 1024
"""A step with draft tokens has at most this many rows, or one for each request if that is more:
the memory of their logits is taken when KV has its memory already, and vLLM measures before
only a step with a row for each request. 1,024 rows of 152,000 tokens take 0.9 GB, in bfloat16
and once more in float32."""

MASK_ROWS: Final = (1, 4, 16)
"""The masks of each request with a grammar have one of these numbers of rows, or that of the
room for draft tokens: vLLM compiles a kernel for each number."""

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
            logits_row = logits(i)
            if self.adjustment is not None:
                logits_row = self.adjustment.after(self.draft[:i]).apply(logits_row)
            return distribution(logits_row, self.sampling)

        return self.judge(row)

    def judge(self, row: Row) -> Judgement:
        """Return the outcome of the step: committed tokens, then those of the pass."""
        if self.rule is None:
            return NOTHING
        judgement = self.rule.judge(lambda i: row(self.known + i), self.draft[self.known :])
        before = self.draft[: self.known]
        return replace(
            judgement,
            tokens=(*before, *judgement.tokens),
            accepted=self.known + judgement.accepted,
        )
