"""One session's part of a pass, and what its logits make of its draft tokens.

A part decodes the last committed token and the draft tokens after it: row i judges draft token
i, and the row after the last one gives the bonus token. Rows are looked at lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from picospec.speculation.protocol.messages import Open, TokenId
from picospec.speculation.sampling.adjustments import Adjust
from picospec.speculation.sampling.distributions import (
    Distribution,
    Logits,
    distribution,
    logprob_of,
)
from picospec.speculation.verifying.machine import Verdict
from picospec.speculation.verifying.session import Pass


@dataclass(frozen=True, slots=True)
class Part:
    """What one session brings to a pass."""

    sequence: int
    held: int
    """So many tokens before `last`, prompt included, are in the KV cache already."""

    last: TokenId
    """It was committed last, or ends the prompt."""

    judged: Pass
    request: Open
    adjust: Adjust | None = None
    """Applies what the request changes of the logits; None changes nothing."""

    committed: tuple[TokenId, ...] = ()
    """The pass follows these output tokens; they are left out where nothing is adjusted."""

    @property
    def tokens(self) -> tuple[TokenId, ...]:
        """The K + 1 rows."""
        return (self.last, *self.judged.draft)


def judge(part: Part, logits: Callable[[int], Logits]) -> Verdict:
    """Judge a part's draft tokens. logits(i): float32[V] of row i, i = 0..K."""
    request, judged = part.request, part.judged

    def row(i: int) -> Distribution:
        found = logits(i)
        if part.adjust is not None:
            found = part.adjust(found, (*part.committed, *judged.draft[:i]))
        return distribution(found, request.sampling)

    judgement = judged.rule.judge(row, judged.draft)
    if (most := request.top_logprobs) is None:
        return Verdict(judgement)
    tokens = enumerate(judgement.tokens)
    return Verdict(judgement, tuple(logprob_of(logits(i), token, most) for i, token in tokens))
